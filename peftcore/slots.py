"""Slots: where the parts of an adapter are going to stand, planned before anything in the model changes.

A slot says which layer, under which key the file holds it, and how its adapter module is made.
Building the modules and putting them into the model come after, so a plan that fails has touched nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapters.base import Adapter, AdapterDict
from peftcore.base_layers.attention import reads_weights
from peftcore.base_layers.base import BaseLayer
from peftcore.call_state import CallState

#: Where a module stands: every (parent, attribute) that leads to it.
Sites = tuple[tuple[nn.Module, str], ...]


@dataclass(eq=False)
class Slot:
    """One planned part of an adapter.

    Attributes:
        path: The layer's dotted path in the user's model.
        key: What the names of the part's tensors start with in a file.
        sites: Where the layer stands.
        base: The view of the layer.
        make: Makes the adapter module for the view.
        auxiliary: Whether it trains something beside the method (a bias, rows, a whole module).
        starts_from_values: Whether making it needs what is in the model or in another adapter, so that it can't be made
            on the meta device. What is beside the method always does.
    """

    path: str
    key: str
    sites: Sites
    base: BaseLayer
    make: Callable[[BaseLayer], Adapter]
    auxiliary: bool = False
    starts_from_values: bool = False


@dataclass(eq=False)
class Placement:
    """One part of an adapter, made for its place, and put there by :func:`place`.

    Attributes:
        path, key, sites, base, auxiliary: As in :class:`Slot`.
        adapter: The adapter module.
        layer: The adapted layer on which it stands, once it does.
    """

    path: str
    key: str
    sites: Sites
    base: BaseLayer
    adapter: Adapter
    auxiliary: bool
    layer: AdaptedLayer = field(init=False)

    @classmethod
    def of(cls, slot: Slot, adapter: Adapter) -> Placement:
        """Return the placement of a slot's adapter module."""
        return cls(slot.path, slot.key, slot.sites, slot.base, adapter, slot.auxiliary)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the frozen module behind any adapted layers."""
    while isinstance(module, AdaptedLayer):
        module = _inside(module)
    return module


def _inside(layer: AdaptedLayer) -> nn.Module:
    # Not by attribute: this runs for every module of a model, and nn.Module's attributes are slow.
    return layer._modules["base_layer"]  # type: ignore[return-value]


def wrappers(sites: Sites) -> Iterator[AdaptedLayer]:
    """Yield the adapted layers that stand at a place, from the outside in."""
    module: nn.Module | None = standing_at(sites)
    while isinstance(module, AdaptedLayer):
        yield module
        module = _inside(module)


def standing_at(sites: Sites) -> nn.Module:
    """Return what stands at a place now."""
    parent, attribute = sites[0]
    module = parent._modules[attribute]
    assert module is not None, "the walk names places where a module stands"
    return module


def one_view(slot: Slot) -> Slot:
    """Let a slot see its layer by the view that the adapted layer there has, which knows what is merged."""
    there = _adapted_at(slot.sites, slot.base)
    if there is not None and there.base.kind == slot.base.kind:
        slot.base = there.base
    return slot


def place(placement: Placement, name: str, call_state: CallState) -> None:
    """Put a part into the model, on the adapted layer that stands at its place or on a new one there."""
    base, sites = placement.base, placement.sites
    layer = _adapted_at(sites, base)
    if layer is None:
        # Outermost, around what stands there: a frozen layer, or one of whose parameters is adapted already.
        base.layer = standing_at(sites)
        layer = AdaptedLayer(base, call_state)
        if not base.layer.training:  # as new modules are
            layer.training = layer.adapters.training = False
        for parent, attribute in sites:
            parent._modules[attribute] = layer
    elif layer.base.kind == "module":
        # Until now only whole-module parts stood here, and those ask for nothing that this view lacks.
        layer.base = base
    if base.read_by_owner or any([reads_weights(parent) for parent, _ in sites]):
        layer.base.read_by_owner = True
    layer.place(name, placement.adapter, auxiliary=placement.auxiliary)
    placement.layer = layer


def hold_shared(placements: Sequence[Placement], name: str, shared: nn.Module) -> None:
    """Let the first layer that an adapter stands on hold what the adapter holds once per model.

    There it moves with the model and is found among its parameters, also where the model was adapted in place.
    """
    layer = _first_layer(placements)
    if layer is None:
        return
    held = layer._modules.setdefault("shared", AdapterDict())
    held._modules[name] = shared  # type: ignore[union-attr]
    held.train(layer.training)  # type: ignore[union-attr]


def let_go_of_shared(placements: Sequence[Placement], name: str) -> None:
    """Take what :func:`hold_shared` has put on a layer off again."""
    layer = _first_layer(placements)
    held = None if layer is None else layer._modules.get("shared")
    if layer is not None and held is not None:
        held._modules.pop(name, None)
        if not held._modules:
            del layer._modules["shared"]


def _first_layer(placements: Sequence[Placement]) -> AdaptedLayer | None:
    return next((placement.layer for placement in placements if not placement.auxiliary), None)


def _adapted_at(sites: Sites, base: BaseLayer) -> AdaptedLayer | None:
    """Return the adapted layer that stands around what a view shows, if there is one."""
    module = standing_at(sites)  # no generator: this runs twice for every layer that is adapted
    while isinstance(module, AdaptedLayer):
        if module.base is base or _identity(module.base) == _identity(base):
            return module
        module = _inside(module)
    return None


def _identity(base: BaseLayer) -> tuple[int, str]:
    """What tells adapted layers at one place apart: the module, and which bare parameter of it if it is one."""
    return id(unwrap(base.layer)), getattr(base, "parameter_name", "")


def take_out(placement: Placement, name: str) -> None:
    """Take a part out of the model; where nothing else is on the layer, the frozen layer goes back to its place."""
    layer = placement.layer
    if layer.parts(name):
        layer.detach(name)
    if not layer.is_bare():
        return
    for parent, attribute in placement.sites:
        _replace(parent, attribute, layer)


def _replace(parent: nn.Module, attribute: str, layer: AdaptedLayer) -> None:
    """Put what is behind an adapted layer into its place, which may lie inside another adapted layer."""
    outer = parent._modules[attribute]
    if outer is layer:
        parent._modules[attribute] = layer.base_layer
        return
    while isinstance(outer, AdaptedLayer):
        if outer.base_layer is layer:
            outer.base_layer = layer.base_layer
            return
        outer = outer.base_layer
