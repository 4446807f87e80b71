"""Tying: layers that store one weight between them share one adapter (``ensure_weight_tying``).

An embedding and the head of a language model are often one matrix. Adapted apart, they become two; adapted as one, what
trains is one change of the one matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapters.base import Adapter
from peftcore.adapters.selective import ModuleCopy
from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig
from peftcore.merging import stored_weight
from peftcore.slots import Sites, Slot, unwrap, wrappers
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

    def layer_of(self, weight: int) -> AdaptedLayer | None:
        """Return the adapted layer that stands around the module for the parameter of this id, if there is one."""
        return next((layer for layer in wrappers(self.sites) if id(layer.frozen_parameter) == weight), None)


def owners_of_weights(model: nn.Module) -> dict[int, list[Owner]]:
    """Return, by each parameter's id, the modules that store it, in the order of the model.

    A layer that has a weight of its own while something is merged still counts as an owner of the shared one; the id of
    its own leads to the same owners.
    """
    owners: dict[int, list[Owner]] = {}
    for places in Inventory(model, unwrap):
        if not places[0].module._parameters:
            continue
        owner = Owner(places[0].path, places[0].module, sites_of(places))
        shared = {id(stored_weight(layer.base)): id(layer.frozen_parameter) for layer in wrappers(owner.sites)}
        for own in {id(parameter): None for parameter in owner.module._parameters.values() if parameter is not None}:
            owners[own] = owners.setdefault(shared.get(own, own), [])
            owners[own].append(owner)
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
    source = functools.cache(functools.partial(make, first[0].path))
    own = _slot(*first, source)
    yield own
    for owner, base in others:
        own_config = config.for_layer(owner.path)
        # The first slot is asked for its view when it is needed: until then it may have got that of an adapted layer.
        yield _slot(owner, base, lambda base, own_config=own_config: source(own.base).tied(base, own_config))  # type: ignore[misc]


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


@contextmanager
def shared_weights_apart(model: nn.Module, names: Sequence[str] = ()) -> Iterator[None]:
    """Merge in this block: a weight that several layers store is written to only where all of them are to change so.

    Otherwise each of them has a weight of its own for as long as something is merged. What is merged already is folded
    anew where that becomes necessary, or ceases to be. If the block fails, all is as before.

    Args:
        model: The user's model.
        names: The adapters that are going to be merged.
    """
    before: list[list[_State]] = []
    try:
        for weight, owners in owners_of_weights(model).items():
            if len(owners) < 2:
                continue
            found = [owner.layer_of(weight) for owner in owners]
            states = [
                _State(layer, layer.keeps_weight_apart, layer.merged_adapters) for layer in found if layer is not None
            ]
            merged = dict.fromkeys([*names, *(name for state in states for name in state.merged)])
            apart = not _changed_alike(found, list(merged))
            if any(state.apart != apart for state in states):
                before.append(states)
                _bring_about([replace(state, apart=apart) for state in states])
        yield
    except Exception:
        for states in before:
            _bring_about(states)
        raise


@dataclass(frozen=True)
class _State:
    """Whether one of the layers that store a weight has its own while something is merged, and what is merged."""

    layer: AdaptedLayer
    apart: bool
    merged: Sequence[str]


def _bring_about(states: Sequence[_State]) -> None:
    # All are unmerged first: a layer's own weight is copied from the shared one, which must be the frozen one then.
    for state in reversed(states):
        state.layer.unmerge()
    for state in states:
        state.layer.keeps_weight_apart = state.apart
    for state in states:
        state.layer.merge_again(state.merged)


def _changed_alike(owners: Sequence[AdaptedLayer | None], names: Sequence[str]) -> bool:
    """Whether one owner of a weight may write what adapters do to it, since each other one repeats all of that.

    Args:
        owners: The layers that store the weight; None for one without adapters.
        names: All adapters that are or are going to be merged.
    """
    writers = [layer for layer in owners if layer is not None and any(_own_parts(layer, name) for name in names)]
    return not writers or (
        len(writers) == 1
        and all(owner is writers[0] or (owner is not None and _repeats(owner, writers[0], names)) for owner in owners)
    )


def _own_parts(layer: AdaptedLayer, name: str) -> list[Adapter]:
    return [part for part in layer.weight_parts([name]) if not part.repeats_another]


def _repeats(layer: AdaptedLayer, writer: AdaptedLayer, names: Sequence[str]) -> bool:
    # Only the layer that writes keeps the frozen weight, and so only there anything can be computed from it.
    if any(part.depends_on_weight for part in layer.weight_parts(layer.names())):
        return False
    return all(len(layer.weight_parts([name])) == len(_own_parts(writer, name)) for name in names)
