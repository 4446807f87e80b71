"""Adapters of different rows, stacked: one product for all of them instead of one for each.

Reading many small factors is what a mixed batch costs where each row has few positions, as in generation.
One product over stacked factors reads them once, and at the memory's speed.
Stacking itself costs as much as a few such calls, so a stack is kept, for as long as nothing of it changes.
What torch counts no changes of is not noticed: writes through ``.data`` (``weight.data.add_(1)``) or through NumPy.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import ThinFactors, WeightDelta
from peftcore.adapters.thin_products import is_watched
from peftcore.call_state import Group, Places

#: Up to how many positions of one adapter a stacked product is faster than a product for each adapter. Beyond, it is
#: computing that costs, not reading.
FEW = 32

#: Gives the places of the rows of adapters, from their names.
PlacesOf = Callable[[tuple[str, ...]], Places]

_version = attrgetter("_version")


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
            arranged = places.arranged(output)
            if owned and (arranged is output or output.is_contiguous()):
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


class _Standing:
    """What stands at some places, and whether it still does.

    Asked in every call of every layer, so the loop is one that Python runs itself.
    """

    def __init__(self, places: Sequence[tuple[Mapping[str, Any], str]]) -> None:
        self._mappings, self._keys = zip(*places, strict=True)
        self._values = tuple(map(dict.get, self._mappings, self._keys))

    def holds(self) -> bool:
        return all(map(is_, map(dict.get, self._mappings, self._keys), self._values))


class _Kept:
    """Stacks, and how their factors were when they were made: by it, every change is noticed that torch counts.

    Args:
        few: The deltas that are stacked.
    """

    def __init__(self, few: Sequence[RowDelta]) -> None:
        self.piles = Piles.of(few)
        self.deltas = [one.delta for one in few]
        self.names = [one.group.name for one in few]
        self._scalings = [_thin(one).scaling for one in few]
        self._factors = _tensors(few)
        self._versions = list(map(_version, self._factors))
        # The factors' memory, which so isn't given to what is put in its place (``.data =``, as casts and moves do it).
        self._memory = [factor.detach() for factor in self._factors]
        places = [one.delta.thin_places() for one in few]
        #: Where everything stands that the factors were read from; empty if it can't be said.
        self.places = [at for found in places for at in found] if all(places) else []
        #: The adapters that a batch asked for when these were all that acted, and what else that was read from.
        self._asked: tuple[str, ...] | None = None
        self._standing: _Standing | None = None

    def holds(self, few: Sequence[RowDelta]) -> bool:
        """Whether these are the factors, unchanged."""
        return (
            self.names == [one.group.name for one in few]
            and self._scalings == [_thin(one).scaling for one in few]
            and all(map(is_, self._factors, _tensors(few)))
            and self._are_unwritten()
        )

    def note(self, asked: Asked) -> None:
        """Note that these are all that acts on a batch which asks for these adapters, so that it isn't asked again."""
        known = self._standing is not None and asked.names == self._asked and self._standing.holds()
        if known or not self.places:
            return
        places = [*self.places, *asked.places()]
        if all(type(mapping) is dict for mapping, _ in places):
            self._asked, self._standing = asked.names, _Standing(places)

    def serves(self, names: tuple[str, ...], x: Tensor) -> bool:
        """Whether these are all that acts, unchanged, on a batch that asks for these adapters."""
        if self._standing is None or names != self._asked:
            return False
        if not (self._standing.holds() and self._are_unwritten()):
            return False
        return all([delta.entering(x) is x for delta in self.deltas])

    def _are_unwritten(self) -> bool:
        same_memory = all(map(Tensor.is_set_to, self._factors, self._memory))
        return same_memory and list(map(_version, self._factors)) == self._versions


class Asked(NamedTuple):
    """What a batch asks of a layer.

    Attributes:
        names: The adapters, each once.
        places: Returns where the layer looks for them, as mappings and keys.
    """

    names: tuple[str, ...]
    places: Callable[[], Sequence[tuple[Mapping[str, Any], str]]]


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

    def are_all(self, names: tuple[str, ...], x: Tensor, places_of: PlacesOf) -> bool:
        """Whether what is kept is all that acts on a batch without gradients, and unchanged: found out at little cost.

        Args:
            names: The adapters that the batch asks for.
            x: The layer's input, ``[batch, …]``.
            places_of: As in :meth:`add`.
        """
        kept = self._kept
        if kept is None or is_watched() or torch.is_grad_enabled() or not kept.serves(names, x):
            return False
        most_rows = _most_rows(x)
        return all([places_of(stack.names).each <= most_rows for stack in kept.piles.stacks])

    def add_kept(
        self,
        output: Tensor,
        x: Tensor,
        groups: Callable[[], Sequence[Group]],
        places_of: PlacesOf,
        *,
        owned: bool,
    ) -> Tensor:
        """Add what is kept to the rows that it acts on, where it is all that acts.

        Args:
            output, x, places_of, owned: As in :meth:`add`.
            groups: Gives the rows of each adapter.
        """
        kept = self._kept
        assert kept is not None, "are_all has said so"
        alone = []
        if kept.piles.left:
            by_name = {group.name: group for group in groups()}
            left = [(by_name[kept.names[number]], kept.deltas[number]) for number in kept.piles.left]
            alone = [RowDelta(group, delta, delta.thin_factors()) for group, delta in left]
        return _added(output, x, kept.piles.stacks, alone, places_of, owned)

    def add(
        self,
        output: Tensor,
        x: Tensor,
        deltas: Sequence[tuple[Group, WeightDelta]],
        places_of: PlacesOf,
        *,
        owned: bool,
        asked: Asked | None = None,
    ) -> Tensor:
        """Add deltas to the rows that they act on.

        Args:
            output: What the layer has made so far, ``[batch, …]``.
            x: The layer's input, ``[batch, …]``.
            deltas: The deltas with the rows that they act on; a row may have several.
            places_of: Gives the places of the rows of adapters, from their names.
            owned: Whether nobody else has the output, so that it may be written to.
            asked: What the batch asks for, if these deltas are all that acts on it.
        """
        watched = is_watched()
        few, alone = _parted(deltas, x)
        piles = self._piles(few, x) if len(few) > 1 and not watched else None
        if self._kept is not None and asked is not None and not alone and piles is self._kept.piles:
            self._kept.note(asked)
        alone += few if piles is None else [few[number] for number in piles.left]
        owned = owned and not (watched or torch.is_grad_enabled())
        return _added(output, x, [] if piles is None else piles.stacks, alone, places_of, owned)

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


def _added(
    output: Tensor, x: Tensor, stacks: Sequence[Stack], alone: Sequence[RowDelta], places_of: PlacesOf, owned: bool
) -> Tensor:
    """Return an output with stacks, and deltas that are in none, added to the rows that they act on."""
    for stack in stacks:
        output = stack.add(output, x, places_of(stack.names), owned=owned)
    if not alone:
        return output
    return _write_alone(output, x, alone) if owned else _add_alone(output, x, alone)


def _tensors(few: Sequence[RowDelta]) -> list[Tensor]:
    return [tensor for one in few for tensor in _thin(one)[:2]]


def _stacked(few: Sequence[RowDelta]) -> _Kept:
    with torch.inference_mode(False), torch.no_grad():
        return _Kept(few)


def _most_rows(x: Tensor) -> int:
    """Return how many rows of an input ``[batch, …, in]`` hold as many positions as a stack is good for."""
    dims = x.dim()
    positions = 1 if dims < 3 else x.shape[1] if dims == 3 else x.shape[1:-1].numel()
    return FEW // max(positions, 1)


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
