"""Adapters of different rows, stacked: one product for all of them instead of one for each.

Reading many small factors is what a mixed batch costs where each row has few positions, as in generation.
One product over stacked factors reads them once, and at the memory's speed.
Stacking itself costs as much as a few such calls, so a stack is kept, for as long as nothing of it changes.
What torch counts no changes of is not noticed: writes through ``.data`` (``weight.data.add_(1)``) or through NumPy.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import ThinFactors, WeightDelta
from peftcore.adapters.thin_products import is_watched
from peftcore.call_state import Group, Places

#: Up to how many positions of one adapter a stacked product is faster than a product for each adapter. Beyond, it is
#: computing that costs, not reading.
FEW = 32


class RowDelta(NamedTuple):
    """A delta and the rows that it acts on.

    Attributes:
        group: The rows.
        delta: The adapter.
        thin: Its factors as they are now, or None.
    """

    group: Group
    delta: WeightDelta
    thin: ThinFactors | None

    def change(self, x: Tensor) -> Tensor:
        """Return the change of the output of these rows, whose input this is."""
        if self.thin is None:
            return self.delta.delta_forward(self.delta.cast(x))
        a, b, scaling = self.thin
        hidden = nn.functional.linear(self.delta.entering(x.to(a.dtype)), a)
        return nn.functional.linear(hidden if scaling == 1 else hidden * scaling, b)


class Stack(NamedTuple):
    """The factors of several adapters.

    Attributes:
        names: The adapters.
        a: A of each, transposed: ``[adapters, in, r]``; ranks that are smaller are filled up with zeros.
        b: B of each, transposed: ``[adapters, r, out]``.
        scaling: What the first one's product is multiplied by.
        ratios: The scaling of each over the first one's, ``[adapters, 1, 1]``; None if all are the same.
    """

    names: tuple[str, ...]
    a: Tensor
    b: Tensor
    scaling: float
    ratios: Tensor | None

    @classmethod
    def of(cls, names: Sequence[str], factors: Sequence[ThinFactors]) -> Stack:
        """Stack factors of one dtype; gradients flow through it into them."""
        rank = max(thin.a.shape[0] for thin in factors)
        a = torch.stack([_filled(thin.a, rank) for thin in factors]).mT
        b = torch.stack([_filled(thin.b.mT, rank) for thin in factors])
        scalings = [thin.scaling for thin in factors]
        if len(set(scalings)) == 1:
            return cls(tuple(names), a, b, scalings[0], None)
        return cls(tuple(names), a, b, 1.0, a.new_tensor(scalings).reshape(-1, 1, 1))

    def add(self, output: Tensor, x: Tensor, places: Places, *, owned: bool) -> Tensor:
        """Return an output ``[batch, …, out]`` with s · B · A · x added to each adapter's rows.

        Args:
            output: The output so far.
            x: The input, ``[batch, …, in]``.
            places: Where the adapters' rows lie.
            owned: Whether the output may be written to.
        """
        hidden = torch.bmm(places.arranged(x if x.dtype == self.a.dtype else x.to(self.a.dtype)), self.a)
        if self.ratios is not None:
            hidden = hidden * self.ratios
        if places.in_order and output.dtype == hidden.dtype == self.b.dtype:
            arranged = output.reshape(len(self.names), -1, output.shape[-1])
            if owned and output.is_contiguous():
                arranged.baddbmm_(hidden, self.b, alpha=self.scaling)
                return output
            return torch.baddbmm(arranged, hidden, self.b, alpha=self.scaling).reshape(output.shape)
        change = torch.bmm(hidden, self.b).reshape(-1, *output.shape[1:])
        return places.add(output, change.to(output.dtype), self.scaling, owned=owned)


def _filled(factor: Tensor, rank: int) -> Tensor:
    missing = rank - factor.shape[0]
    return nn.functional.pad(factor, (0, 0, 0, missing)) if missing else factor


class Piles(NamedTuple):
    """Stacks of factors, and what of them goes with no others.

    Attributes:
        stacks: The stacks.
        left: The numbers of the other factors.
    """

    stacks: list[Stack]
    left: list[int]

    @classmethod
    def of(cls, few: Sequence[RowDelta]) -> Piles:
        """Stack what goes together: dtypes that are the same, and ranks that are not too far apart.

        They lie in the order of the batch's rows, so that these need not be put into another one.
        """
        alike: dict[tuple[object, ...], list[int]] = {}
        for number in sorted(range(len(few)), key=lambda number: (few[number].group.rows or (0,))[0]):
            a, b, _ = _thin(few[number])
            alike.setdefault((a.dtype, b.dtype, a.shape[0].bit_length()), []).append(number)
        several = [[few[number] for number in numbers] for numbers in alike.values() if len(numbers) > 1]
        stacks = [Stack.of([one.group.name for one in ones], [_thin(one) for one in ones]) for ones in several]
        return cls(stacks, [numbers[0] for numbers in alike.values() if len(numbers) == 1])


def _thin(one: RowDelta) -> ThinFactors:
    assert one.thin is not None, "only thin factors are stacked"
    return one.thin


class _Mark(NamedTuple):
    """How the factors of one adapter were when they were stacked: by it, every change is noticed that torch counts."""

    name: str
    a: Tensor
    b: Tensor
    scaling: float
    version_a: int
    version_b: int
    #: The factors' memory, which so isn't given to what is put in its place (``.data =``, as casts and moves do it).
    memory_a: Tensor
    memory_b: Tensor

    @classmethod
    def of(cls, one: RowDelta) -> _Mark:
        a, b, scaling = _thin(one)
        return cls(one.group.name, a, b, scaling, a._version, b._version, a.detach(), b.detach())


class _Kept:
    """Stacks, and how their factors were when they were made.

    Args:
        few: The deltas that are stacked.
    """

    def __init__(self, few: Sequence[RowDelta]) -> None:
        self.marks = [_Mark.of(one) for one in few]
        self.piles = Piles.of(few)
        self.deltas = [one.delta for one in few]
        places = [one.delta.thin_places() for one in few]
        #: Where everything stands that the factors were read from, and what stands there; None if it can't be said.
        self.places = [(*at, at[0].get(at[1])) for found in places for at in found] if all(places) else None

    def holds(self, few: Sequence[RowDelta]) -> bool:
        """Whether these are the factors, unchanged."""
        if len(few) != len(self.marks):
            return False
        for mark, one in zip(self.marks, few, strict=True):
            a, b, scaling = _thin(one)
            if a is not mark.a or b is not mark.b or scaling != mark.scaling or one.group.name != mark.name:
                return False
        return self._are_unwritten()

    def serves(self, deltas: Sequence[tuple[Group, WeightDelta]], x: Tensor) -> bool:
        """Whether these are the deltas, all of them, with unchanged factors: found out without asking for these."""
        if self.places is None or len(deltas) != len(self.deltas):
            return False
        first, most_rows = x[:1], _most_rows(x)
        for (group, delta), known, mark in zip(deltas, self.deltas, self.marks, strict=True):
            if delta is not known or group.name != mark.name or len(group.rows or ()) > most_rows:
                return False
            if delta.entering(first) is not first:
                return False
        for mapping, key, value in self.places:
            if mapping.get(key) is not value:
                return False
        return self._are_unwritten()

    def _are_unwritten(self) -> bool:
        for _, a, b, _, version_a, version_b, memory_a, memory_b in self.marks:
            if a._version != version_a or b._version != version_b:
                return False
            if not (a.is_set_to(memory_a) and b.is_set_to(memory_b)):
                return False
        return True


class Stacks:
    """What one layer keeps stacked from one mixed batch to the next; copies and pickles of it are empty.

    It holds what the last batch asked for.
    A stack is made when factors come unchanged a second time: what comes once is not worth it.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None
        #: The factors of the last batch and their versions, if they were not stacked.
        self._seen: list[tuple[weakref.ref[Tensor], int]] = []

    def __reduce__(self) -> tuple[type[Stacks], tuple[()]]:
        return Stacks, ()

    def add(
        self,
        output: Tensor,
        x: Tensor,
        deltas: Sequence[tuple[Group, WeightDelta]],
        places_of: Callable[[tuple[str, ...]], Places],
        *,
        owned: bool,
    ) -> Tensor:
        """Add deltas to the rows that they act on.

        Args:
            output: What the layer has made so far, ``[batch, …]``.
            x: The layer's input, ``[batch, …]``.
            deltas: The deltas with the rows that they act on; a row may have several.
            places_of: Gives the places of the rows of adapters, from their names.
            owned: Whether nobody else has the output, so that it may be written to.
        """
        watched, with_gradients, kept = is_watched(), torch.is_grad_enabled(), self._kept
        owned = owned and not (watched or with_gradients)
        if kept is not None and not (watched or with_gradients) and kept.serves(deltas, x):
            piles: Piles | None = kept.piles
            alone = [RowDelta(*deltas[number], deltas[number][1].thin_factors()) for number in kept.piles.left]
        else:
            few, alone = _parted(deltas, x)
            piles = self._piles(few, x) if len(few) > 1 and not watched else None
            alone += few if piles is None else [few[number] for number in piles.left]
        for stack in () if piles is None else piles.stacks:
            output = stack.add(output, x, places_of(stack.names), owned=owned)
        if not alone:
            return output
        return _write_alone(output, x, alone) if owned else _add_alone(output, x, alone)

    def _piles(self, few: Sequence[RowDelta], x: Tensor) -> Piles | None:
        """Return stacks of factors, if they save more than they cost."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(few)):
            return Piles.of(few) if _pays_for_one_call(x) else None
        if self._kept is None or not self._kept.holds(few):
            self._kept = _stacked(few) if self._has_seen(few) else None
        if self._kept is not None:
            return self._kept.piles
        return Piles.of(few) if _pays_for_one_call(x) else None

    def _has_seen(self, few: Sequence[RowDelta]) -> bool:
        """Whether the last batch asked for the same factors, unchanged; from now on, these are the last batch's."""
        tensors, seen = _tensors(few), self._seen
        if any(tensor.is_inference() for tensor in tensors):
            return False  # torch counts no changes of what was made in inference mode
        self._seen = [(weakref.ref(tensor), tensor._version) for tensor in tensors]
        return len(tensors) == len(seen) and all(
            tensor is known() and tensor._version == version
            for tensor, (known, version) in zip(tensors, seen, strict=True)
        )


def _tensors(few: Sequence[RowDelta]) -> list[Tensor]:
    return [tensor for one in few for tensor in _thin(one)[:2]]


def _stacked(few: Sequence[RowDelta]) -> _Kept:
    with torch.inference_mode(False), torch.no_grad():
        return _Kept(few)


def _most_rows(x: Tensor) -> int:
    """Return how many rows of an input ``[batch, …, in]`` hold as many positions as a stack is good for."""
    return FEW if x.dim() < 3 else FEW // max(x.shape[1:-1].numel(), 1)


def _parted(deltas: Sequence[tuple[Group, WeightDelta]], x: Tensor) -> tuple[list[RowDelta], list[RowDelta]]:
    """Part the deltas that a stack can serve (of thin factors, on few positions, dropping nothing) from the others."""
    first, most_rows = x[:1], _most_rows(x)
    few: list[RowDelta] = []
    others: list[RowDelta] = []
    for group, delta in deltas:
        thin = delta.thin_factors()
        fits = thin is not None and len(group.rows or ()) <= most_rows and delta.entering(first) is first
        (few if fits else others).append(RowDelta(group, delta, thin))
    return few, others


def _pays_for_one_call(x: Tensor) -> bool:
    """Whether factors are stacked for one call alone: where to launch a product costs more than to copy its factors."""
    return x.device.type != "cpu"


def _add_alone(output: Tensor, x: Tensor, deltas: Sequence[RowDelta]) -> Tensor:
    """Return an output with deltas added, one by one."""
    changes = [one.change(one.group.rows_of(x)).to(output.dtype) for one in deltas]
    return output.index_add(0, torch.cat([_index(one) for one in deltas]), torch.cat(changes))


def _write_alone(output: Tensor, x: Tensor, deltas: Sequence[RowDelta]) -> Tensor:
    """Add deltas to an output in its own memory, one by one."""
    for one in deltas:
        change = one.change(one.group.rows_of(x)).to(output.dtype)
        if one.group.span is None:
            output.index_add_(0, _index(one), change)
        else:
            output[one.group.span].add_(change)
    return output


def _index(one: RowDelta) -> Tensor:
    assert one.group.index is not None, "where all rows ask for one adapter, there is nothing to tell apart"
    return one.group.index
