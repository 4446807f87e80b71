"""Entries: adapters that change few entries of a weight say which; merging reads, keeps and writes these alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from peftcore.adapters.base import Adapter


class Entries(ABC):
    """Some entries of a canonical weight, whatever the weight's device and wherever it lies in memory."""

    @abstractmethod
    def read(self, weight: Tensor) -> Tensor:
        """Return a copy of the entries."""

    @abstractmethod
    def write_(self, weight: Tensor, values: Tensor) -> None:
        """Write values, shaped as :meth:`read` returns them, into a weight, in its dtype."""


class Slices(Entries):
    """Whole slices along one dimension: rows of a matrix are slices along dimension 0, columns along 1.

    They are read and written as ``[n, *rest]``: so columns come as the rows of a matrix.

    Args:
        dim: The dimension.
        index: Which slices, ``[n]``, int64; each once.
    """

    def __init__(self, dim: int, index: Tensor) -> None:
        self.dim = dim
        self.index = index

    def read(self, weight: Tensor) -> Tensor:
        """Return the slices, ``[n, *rest]``."""
        return weight.movedim(self.dim, 0).index_select(0, self.index.to(weight.device))

    def write_(self, weight: Tensor, values: Tensor) -> None:
        """Write slices ``[n, *rest]``."""
        values = values.to(weight.device, weight.dtype)
        weight.movedim(self.dim, 0).index_copy_(0, self.index.to(weight.device), values)


class Scattered(Entries):
    """Single entries of a weight.

    Args:
        places: Their positions in the flattened weight, ``[n]``, integers; each once.
    """

    def __init__(self, places: Tensor) -> None:
        self.places = places.long()

    def read(self, weight: Tensor) -> Tensor:
        """Return the entries, ``[n]``."""
        places = self.places.to(weight.device)
        # The first takes less time, but only some weights can be seen flat.
        return weight.view(-1).index_select(0, places) if weight.is_contiguous() else weight.take(places)

    def write_(self, weight: Tensor, values: Tensor) -> None:
        """Write entries ``[n]``."""
        weight.put_(self.places.to(weight.device), values.to(weight.device, weight.dtype))


class ChangesEntries(Adapter):
    """An adapter that may change few entries of a weight, each by itself, and nothing else: no bias.

    To be derived from beside a family. Merged alone, it is written into the entries, which are kept until it is taken
    out: then they are what they were, bit for bit. Together with others, and on storages that can't be written to in
    place, it is folded (added) as without this class.
    """

    @abstractmethod
    def entries(self) -> Entries | None:
        """Return which entries it changes now; None if they are not few, and the weight is to be folded whole."""

    @abstractmethod
    def fold_entries(self, held: Tensor) -> Tensor:
        """Return what becomes of the entries, as :meth:`~peftcore.adapters.base.Adapter.fold` says of the weight.

        Args:
            held: The entries as they are, in the wider dtype of the weight's and the adapter's; stays as it is.
        """

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return a copy of the weight in which the entries are changed."""
        entries = self.entries()
        assert entries is not None  # else there is a fold of its own
        weight, held = weight.clone(), entries.read(weight)
        entries.write_(weight, self.fold_entries(held))
        return weight, bias
