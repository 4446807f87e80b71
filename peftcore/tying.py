"""Tying: layers that store one weight between them share one adapter (``ensure_weight_tying``).

An embedding and the head of a language model are often one matrix. Adapted apart, they become two; adapted as one, what
trains is one change of the one matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapters.base import Adapter
from peftcore.adapters.selective import ModuleCopy
from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig
from peftcore.merging import stored_weight
from peftcore.slots import Sites, Slot, unwrap
from peftcore.targets import Inventory, sites_of

#: Makes the adapter module for the layer at a path.
Make = Callable[[str, BaseLayer], Adapter]
#: Returns the view of a layer, None for one that can't be adapted.
View = Callable[[nn.Module], BaseLayer | None]


@dataclass(frozen=True)
class Owner:
    """A module that stores a weight.

    Attributes:
        path: Its dotted path in the user's model.
        module: The module.
        sites: Where it stands.
    """

    path: str
    module: nn.Module
    sites: Sites


def owners_of_weights(model: nn.Module) -> dict[int, list[Owner]]:
    """Return, by each parameter's id, the modules that store it, in the order of the model."""
    owners: dict[int, list[Owner]] = {}
    for places in Inventory(model, unwrap):
        owner = Owner(places[0].path, places[0].module, sites_of(places))
        for parameter in owner.module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(owner)
    return owners


def tie_adapters(model: nn.Module, slots: Sequence[Slot], config: LayerConfig, view: View, make: Make) -> list[Slot]:
    """Return the slots with each of those whose weight others store too widened to all of its owners.

    The first owner in the model gets the adapter, the others get it as it acts on them.

    Args:
        model: The user's model.
        slots: The method's slots.
        config: The adapter's config.
        view: Returns the view of a layer, None for one that can't be adapted.
        make: Makes the adapter module for a path and a view.
    """
    owners = owners_of_weights(model)
    tied: list[Slot] = []
    done: set[int] = set()
    for slot in slots:
        weight = id(stored_weight(slot.base))
        group = owners.get(weight, [])
        if len(group) < 2:
            tied.append(slot)
        elif weight not in done:
            done.add(weight)
            tied += _slots_for(group, config, view, make)
    return tied


def _slots_for(group: Sequence[Owner], config: LayerConfig, view: View, make: Make) -> Iterator[Slot]:
    first, *others = [(owner, base) for owner in group if (base := view(owner.module)) is not None]
    source = functools.cache(functools.partial(make, first[0].path, first[1]))
    yield _slot(*first, lambda _: source())
    for owner, base in others:
        own_config = config.for_layer(owner.path)
        yield _slot(owner, base, lambda base, own_config=own_config: source().tied(base, own_config))  # type: ignore[misc]


def _slot(owner: Owner, base: BaseLayer, make: Callable[[BaseLayer], Adapter]) -> Slot:
    return Slot(owner.path, owner.path, owner.sites, base, make, starts_from_values=True)


def tie_copies(model: nn.Module, slots: Sequence[Slot]) -> list[Slot]:
    """Return slots of whole modules, widened to the modules that store the same weight; their copies share it too.

    Args:
        model: The user's model.
        slots: The slots, which make :class:`ModuleCopy`.
    """
    owners = owners_of_weights(model)
    wanted = {slot.path: slot for slot in slots}
    for slot in slots:
        for parameter in slot.base.layer._parameters.values():
            for owner in owners.get(id(parameter), ()):
                base = type(slot.base)(owner.module)
                wanted.setdefault(
                    owner.path, replace(slot, path=owner.path, key=owner.path, sites=owner.sites, base=base)
                )
    copied: dict[int, nn.Parameter] = {}
    return [replace(slot, make=functools.partial(_sharing_copy, slot.make, copied)) for slot in wanted.values()]


def _sharing_copy(make: Callable[[BaseLayer], Adapter], copied: dict[int, nn.Parameter], base: BaseLayer) -> Adapter:
    """Make a copy of a module that stores the parameters copied before, where the module stores what they copy."""
    adapter = make(base)
    assert isinstance(adapter, ModuleCopy)
    for name, parameter in base.layer._parameters.items():
        own = adapter.module._parameters[name]
        if parameter is not None and own is not None:
            adapter.module._parameters[name] = copied.setdefault(id(parameter), own)
    return adapter


def keep_shared_weights_apart(model: nn.Module, layers: Sequence[AdaptedLayer], names: Sequence[str]) -> None:
    """Keep what is going to be merged into a layer out of others that store the same weight and are not adapted alike.

    Args:
        model: The user's model.
        layers: The layers into which something is going to be merged.
        names: The adapters.
    """
    repeating = {id(unwrap(layer)) for layer in layers if any(p.repeats_another for n in names for p in layer.parts(n))}
    owners = owners_of_weights(model)
    for layer in layers:
        alike = {id(unwrap(layer)), *repeating}
        others = [o for o in owners.get(id(stored_weight(layer.base)), ()) if id(o.module) not in alike]
        if others and layer.folding_parts(names):
            layer.keeps_weight_apart = True
