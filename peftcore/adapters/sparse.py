"""Changes of a few entries of a weight: the family of methods that train these, and what is sparse elsewhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.entries import ChangesEntries, Entries, Scattered
from peftcore.adapters.sparse_product import KnownPattern, sparse_product
from peftcore.adapters.thin_products import is_watched
from peftcore.exceptions import CheckpointError

#: One entry of so many: if more change, it takes less time to add Δ to the weight for a call …
_FEW = 32
#: … and if that can't be done, to multiply by Δ as a matrix.
_SOME = 8


class SparseDelta(WeightDelta, ChangesEntries):
    """An additive change S of some entries of the weight, each by a number of its own that trains.

    The author names the tensors by :attr:`values_name` and :attr:`places_name`, and calls :meth:`hold_entries`.
    On a linear layer, few entries act without S being formed; merged, they are written alone.
    """

    kinds = MATRIX_KINDS
    #: Name of the parameter that holds the numbers, ``[n]``.
    values_name: ClassVar[str]
    #: Name of the buffer, int32, that holds the entries' places, each once.
    places_name: ClassVar[str]
    #: Whether these are rows and columns ``[2, n]`` of the weight as a matrix; else, positions ``[n]`` in it flattened.
    by_rows: ClassVar[bool] = False

    def hold_entries(self, count: int, choose: Callable[[], Tensor], *, zeros: bool, saved: bool = True) -> None:
        """Make the numbers, and hold the places.

        Args:
            count: How many entries, n.
            choose: Returns their positions in the flattened canonical weight, ``[n]``; not called where a file is going
                to bring them.
            zeros: Whether the numbers start as zeros, which leave the model as it was, or as normal noise.
            saved: Whether files hold the places.

        Raises:
            ConfigError: ``choose`` raised it.
        """
        values = torch.zeros(count) if zeros else torch.randn(count)
        self.register_parameter(self.values_name, nn.Parameter(values))
        shape = (2, count) if self.by_rows else (count,)
        places = torch.empty(shape, dtype=torch.int32) if values.is_meta else self._written(choose())
        self.register_buffer(self.places_name, places, persistent=saved)
        self._known = KnownPattern()

    def _written(self, places: Tensor) -> Tensor:
        columns = self.sizes()[1]
        written = torch.stack([places // columns, places % columns]) if self.by_rows else places
        return written.to(self.base.device, torch.int32)

    def sizes(self) -> tuple[int, int]:
        """Return the rows and columns of the weight as a matrix: stacked experts are one above the other."""
        columns = self.base.matrix_shape[1]
        return self.base.weight_shape.numel() // columns, columns

    def values(self) -> Tensor:
        """Return the numbers, ``[n]``."""
        return self._parameters[self.values_name]  # type: ignore[return-value]

    def _held_places(self) -> Tensor:
        return self._buffers[self.places_name]  # type: ignore[return-value]

    def places(self) -> Tensor:
        """Return the entries' positions in the flattened canonical weight, ``[n]``, int64."""
        places = self._held_places()
        return places[0].long() * self.sizes()[1] + places[1] if self.by_rows else places.long()

    def sparse_weight(self) -> Tensor:
        """Return S: the numbers at their places, and zeros elsewhere."""
        return scattered(self.values(), self.places(), self.base.weight_shape)

    def delta_weight(self) -> Tensor:
        """Return S; to be overridden where Δ is more than that, with :meth:`delta_forward` and :meth:`entries`."""
        return self.sparse_weight()

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return S · x."""
        x = self.entering(x)
        if is_watched() or self.base.kind != "linear" or x.device.type not in ("cpu", "cuda") or self._exceeds(_SOME):
            return self.base.apply(self.sparse_weight(), x)
        pattern = self._known.of(self._held_places(), self.sizes())
        product = sparse_product(self.values(), x.reshape(-1, x.shape[-1]).mT, pattern)
        return product.mT.reshape(*x.shape[:-1], self.base.out_features)

    def acts_whole(self) -> bool:
        """Return whether the entries are so many that it takes less time to form Δ."""
        return self._exceeds(_FEW)

    def _exceeds(self, part: int) -> bool:
        return self.values().numel() * part > self.base.weight_shape.numel()

    def entries(self) -> Entries | None:
        """Return the places."""
        return Scattered(self.places())

    def fold_entries(self, held: Tensor) -> Tensor:
        """Return the entries with the numbers added."""
        return held + self.values()

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Check that the entries that a file names are in the weight."""
        if (places := state.get(self.places_name)) is not None:
            sizes = self.sizes() if self.by_rows else (self.base.weight_shape.numel(),)
            check_places(self.places_name, places, sizes, f"the weight of a {self.base}")


def scattered(values: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor that is zero but for some entries; values at one place add up.

    Args:
        values: The entries' values, ``[..., n]``.
        places: Their positions in the flattened tensor, ``[n]``.
        shape: The tensor's shape, but for the first dimensions, which are those of the values.
    """
    nothing = values.new_zeros(*values.shape[:-1], math.prod(shape))
    return nothing.index_add(-1, places, values).reshape(*values.shape[:-1], *shape)


def check_places(name: str, places: Tensor, sizes: Sequence[int], matrix: str) -> None:
    """Check that places which a file brings lie in a matrix, each once.

    Args:
        name: What the file calls them.
        places: Whole numbers from 0: ``[n]``, or for each dimension of the matrix ``[dimensions, n]``.
        sizes: What the numbers, or the numbers of each dimension, have to be below.
        matrix: What the message is to call the matrix.

    Raises:
        CheckpointError: They don't, one is there twice, or they are no integers.
    """
    integers = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    rows = places.reshape(len(sizes), -1) if integers and places.numel() % len(sizes) == 0 else None
    if rows is None or any(((row < 0) | (row >= size)).any() for row, size in zip(rows, sizes, strict=True)):
        raise CheckpointError(
            f"{name} must be integers that name entries of {matrix}, {' × '.join(map(str, sizes))}, and these do not: "
            "the file is damaged, or another model's."
        )
    first, *others = zip(rows.long(), sizes, strict=True)
    flat = functools.reduce(lambda before, pair: before * pair[1] + pair[0], others, first[0])
    named = torch.zeros(math.prod(sizes), dtype=torch.bool, device=places.device).index_fill_(0, flat, True)
    if named.count_nonzero() < len(flat):
        raise CheckpointError(f"{name} must name each entry of {matrix} once, and these name some twice.")
