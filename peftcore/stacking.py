"""Adapters of different rows, stacked: one product for all of them instead of one for each.

Reading many small factors is what a mixed batch costs where each row has few positions, as in generation.
One product over stacked factors reads them once, and at the memory's speed.
Stacking itself costs as much as a few such calls, so a stack is kept, for as long as nothing of it changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import ThinFactors, WeightDelta
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
        a: A of each, ``[adapters, r, in]``; ranks that are smaller are filled up with zeros.
        b: B of each, transposed: ``[adapters, r, out]``.
        scaling: What the first one's product is multiplied by.
        ratios: The scaling of each over the first one's, ``[adapters, 1, 1]``; None if all are the same.
    """

    a: Tensor
    b: Tensor
    scaling: float
    ratios: Tensor | None

    @classmethod
    def of(cls, factors: Sequence[ThinFactors]) -> Stack:
        """Stack factors of one dtype; gradients flow through it into them."""
        rank = max(thin.a.shape[0] for thin in factors)
        a = torch.stack([_filled(thin.a, rank) for thin in factors])
        b = torch.stack([_filled(thin.b.mT, rank) for thin in factors])
        scalings = [thin.scaling for thin in factors]
        if len(set(scalings)) == 1:
            return cls(a, b, scalings[0], None)
        return cls(a, b, 1.0, a.new_tensor(scalings).reshape(-1, 1, 1))

    def add(self, output: Tensor, x: Tensor, places: Places, *, owned: bool) -> Tensor:
        """Return an output ``[batch, …, out]`` with s · B · A · x added to each adapter's rows.

        Args:
            output: The output so far.
            x: The input, ``[batch, …, in]``.
            places: Where the adapters' rows lie.
            owned: Whether the output may be written to.
        """
        hidden = torch.bmm(places.arranged(x.to(self.a.dtype)), self.a.mT)
        if self.ratios is not None:
            hidden = hidden * self.ratios
        if places.in_order and output.dtype == hidden.dtype:
            arranged = output.reshape(len(hidden), -1, output.shape[-1])
            return torch.baddbmm(arranged, hidden, self.b, alpha=self.scaling).reshape(output.shape)
        change = torch.bmm(hidden, self.b).reshape(-1, *output.shape[1:])
        return places.add(output, change.to(output.dtype), self.scaling, owned=owned)


def _filled(factor: Tensor, rank: int) -> Tensor:
    missing = rank - factor.shape[0]
    return nn.functional.pad(factor, (0, 0, 0, missing)) if missing else factor


class _Mark:
    """How the factors of one adapter were when they were stacked: by it, every change is noticed that torch counts."""

    __slots__ = ("a", "b", "pointers", "scaling", "storages", "versions")

    def __init__(self, thin: ThinFactors) -> None:
        a, b, self.scaling = thin
        self.a, self.b = weakref.ref(a), weakref.ref(b)
        self.versions = a._version, b._version
        self.pointers = a.data_ptr(), b.data_ptr()
        # Keeps the memory from being given to what is put in its place (``.data =``, as casts and moves do it).
        self.storages = a.untyped_storage(), b.untyped_storage()

    def holds(self, thin: ThinFactors) -> bool:
        """Whether these are the factors, unchanged."""
        a, b, scaling = thin
        return (
            self.a() is a
            and self.b() is b
            and self.versions == (a._version, b._version)
            and self.pointers == (a.data_ptr(), b.data_ptr())
            and self.scaling == scaling
        )


class Piles(NamedTuple):
    """Stacks of factors, and what of them goes with no others.

    Attributes:
        stacks: The stacks, each with the numbers of the factors in it.
        left: The numbers of the others.
    """

    stacks: list[tuple[list[int], Stack]]
    left: list[int]

    @classmethod
    def of(cls, factors: Sequence[ThinFactors]) -> Piles:
        """Stack what goes together: dtypes that are the same, and ranks that are not too far apart."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for number, thin in enumerate(factors):
            alike.setdefault((thin.a.dtype, thin.b.dtype, thin.a.shape[0].bit_length()), []).append(number)
        several = [numbers for numbers in alike.values() if len(numbers) > 1]
        left = [numbers[0] for numbers in alike.values() if len(numbers) == 1]
        return cls([(numbers, Stack.of([factors[number] for number in numbers])) for numbers in several], left)


class _Kept:
    """Factors as they were, and their stacks, made when they come the second time: what comes once is not worth it."""

    def __init__(self, factors: Sequence[ThinFactors]) -> None:
        self.marks = [_Mark(thin) for thin in factors]
        self.piles: Piles | None = None

    def holds(self, factors: Sequence[ThinFactors]) -> bool:
        """Whether these are the factors, unchanged."""
        return len(self.marks) == len(factors) and all(map(_Mark.holds, self.marks, factors))

    def stacked(self, factors: Sequence[ThinFactors]) -> Piles:
        """Return their stacks."""
        if self.piles is None:
            with torch.inference_mode(False), torch.no_grad():
                self.piles = Piles.of([ThinFactors(a.detach(), b.detach(), s) for a, b, s in factors])
        return self.piles


class Stacks:
    """What one layer keeps stacked from one mixed batch to the next; copies and pickles of it are empty.

    It holds the factors that the last batch asked for, and no adapter.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

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
        owned = owned and not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active())
        few, alone = _parted(deltas, x)
        piles = self._piles([one.thin for one in few], x) if len(few) > 1 else None  # type: ignore[misc]
        if piles is None:
            alone = few + alone
        else:
            for numbers, stack in piles.stacks:
                places = places_of(tuple([few[number].group.name for number in numbers]))
                output = stack.add(output, x, places, owned=owned)
            alone += [few[number] for number in piles.left]
        if not alone:
            return output
        return _write_alone(output, x, alone) if owned else _add_alone(output, x, alone)

    def _piles(self, factors: Sequence[ThinFactors], x: Tensor) -> Piles | None:
        """Return stacks of factors, if they save more than they cost."""
        if torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled() and (
            x.requires_grad or any(a.requires_grad or b.requires_grad for a, b, _ in factors)
        ):
            return Piles.of(factors) if _pays_for_one_call(x) else None
        if self._kept is not None and self._kept.holds(factors):
            return self._kept.stacked(factors)
        self._kept = _kept(factors)
        return Piles.of(factors) if self._kept is None and _pays_for_one_call(x) else None


def _kept(factors: Sequence[ThinFactors]) -> _Kept | None:
    try:
        return _Kept(factors)
    except RuntimeError:
        return None  # torch counts no changes of a tensor made in inference mode, and one under vmap has no memory


def _parted(deltas: Sequence[tuple[Group, WeightDelta]], x: Tensor) -> tuple[list[RowDelta], list[RowDelta]]:
    """Part the deltas that a stack can serve (of thin factors, on few positions, dropping nothing) from the others."""
    first, most_rows = x[:1], FEW // max(x.shape[1:-1].numel(), 1)
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
