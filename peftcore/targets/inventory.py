"""One walk over a model: where each module stands, and under which names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn

Unwrap = Callable[[nn.Module], nn.Module]


class Place(NamedTuple):
    """One place of a module in a model.

    Attributes:
        path: Dotted name, free of what adapted layers put between.
        parent: The module that holds it.
        attribute: Its name there; ``parent._modules[attribute]`` may be an adapted layer around ``module``.
        module: The frozen module.
    """

    path: str
    parent: nn.Module
    attribute: str
    module: nn.Module


class Inventory:
    """Every module below a model with all its places, in the order of the walk.

    A shared module has several places.
    A module that stands inside itself is not entered again.
    Time is linear in the number of dotted names.

    Args:
        model: The user's model; it is only read.
        unwrap: Returns the frozen module of an adapted layer, and any other module itself.
    """

    def __init__(self, model: nn.Module, unwrap: Unwrap) -> None:
        self._unwrap = unwrap
        self._open: set[int] = set()
        self._places: dict[int, list[Place]] = {}
        self.root = unwrap(model)
        self._enter(self.root, "")

    def _enter(self, module: nn.Module, prefix: str) -> None:
        self._open.add(id(module))
        for attribute, child in module._modules.items():
            if child is None:
                continue
            frozen = self._unwrap(child)
            if id(frozen) in self._open:
                continue
            path = prefix + attribute
            self._places.setdefault(id(frozen), []).append(Place(path, module, attribute, frozen))
            if frozen._modules:
                self._enter(frozen, path + ".")
        self._open.discard(id(module))

    def __iter__(self) -> Iterator[list[Place]]:
        """Yield each module's places."""
        return iter(self._places.values())

    def paths(self) -> list[str]:
        """Return every dotted name."""
        return [place.path for places in self for place in places]


def sites_of(places: list[Place]) -> tuple[tuple[nn.Module, str], ...]:
    """Return the distinct (parent, attribute) pairs; a shared parent gives one for many paths."""
    if len(places) == 1:
        return ((places[0].parent, places[0].attribute),)
    sites = {(id(place.parent), place.attribute): (place.parent, place.attribute) for place in places}
    return tuple(sites.values())
