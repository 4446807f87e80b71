"""CallState: what holds for one call on a whole model, shared by all of its adapted layers.

Switching adapters off and giving each row of a batch its own adapter are decisions about a call, not about a layer.
They are said once, here, so they cost the same for ten layers and for ten thousand, and nothing is left behind in the
layers when a call fails.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftcore.exceptions import MixedBatchError

#: The row's name that asks for no adapter.
BASE = "__base__"


@dataclass(frozen=True)
class Group:
    """The rows of a batch that ask for one adapter.

    Attributes:
        name: The adapter, or ``"__base__"``.
        rows: Their numbers, ascending; None means all of them.
        device: Where :attr:`index` is.
    """

    name: str
    rows: Sequence[int] | None = None
    device: torch.device | None = None

    @functools.cached_property
    def index(self) -> Tensor | None:
        """The rows, ``[rows]`` of int64; None means all of them."""
        return None if self.rows is None else torch.tensor(self.rows, device=self.device)

    @functools.cached_property
    def span(self) -> slice | None:
        """The rows as a slice, where one follows the other."""
        if self.rows is None:
            return slice(None)
        first, last = self.rows[0], self.rows[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.rows) else None

    def rows_of(self, x: Tensor) -> Tensor:
        """Return these rows of a tensor that has all rows in front; a view where that is possible."""
        if self.span is not None:
            return x[self.span]
        assert self.index is not None
        return x.index_select(0, self.index)


class Places:
    """Where the rows of several adapters lie when they are stacked, each adapter with as many places as the largest.

    Args:
        members: The rows of each adapter, ascending.
        size: How many rows the batch has.
        device: Where tensors are made.

    Attributes:
        each: Places of one adapter.
        in_order: Whether row after row lies at place after place.
    """

    def __init__(self, members: Sequence[Sequence[int]], size: int, device: torch.device) -> None:
        self.each = each = max(map(len, members))
        self._members, self._size, self._device = members, size, device
        self._sources = [row for rows in members for row in (*rows, *[rows[0]] * (each - len(rows)))]
        self.in_order = self._sources == list(range(size))

    # Tensors are made when they are first asked for: most batches need few of them.

    @functools.cached_property
    def _lying(self) -> list[tuple[int, int, int]]:
        """Each row that has any of the adapters, ascending, with its adapter's number and its place."""
        return sorted(
            (row, slot, slot * self.each + number)
            for slot, rows in enumerate(self._members)
            for number, row in enumerate(rows)
        )

    @functools.cached_property
    def slots(self) -> Tensor:
        """Which of the adapters each row has, ``[rows]``, for the rows that have any of them."""
        return torch.tensor([slot for _, slot, _ in self._lying], device=self._device)

    @functools.cached_property
    def rows(self) -> Tensor | None:
        """These rows, ``[rows]``, ascending; None if they are all."""
        lying = self._lying
        return None if len(lying) == self._size else torch.tensor([row for row, _, _ in lying], device=self._device)

    @functools.cached_property
    def places(self) -> Tensor | None:
        """Where each of these rows lies, ``[rows]``; None if row after row."""
        return None if self.in_order else torch.tensor([place for _, _, place in self._lying], device=self._device)

    @functools.cached_property
    def sources(self) -> Tensor | None:
        """Which row lies at each place, ``[adapters · each]``; None if row after row.

        A row lies at more than one where an adapter has fewer rows than places.
        """
        return None if self.in_order else torch.tensor(self._sources, device=self._device)

    def arranged(self, x: Tensor) -> Tensor:
        """Return the rows ``[batch, …, features]`` at their places, as ``[adapters, positions, features]``."""
        arranged = x if self.sources is None else x.index_select(0, self.sources)
        if self.each == 1 and x.dim() == 3:
            return arranged
        return arranged.reshape(arranged.shape[0] // self.each, -1, x.shape[-1])

    def add(self, output: Tensor, changes: Tensor, scaling: float, *, owned: bool) -> Tensor:
        """Add to rows what lies at their places, ``[adapters · each, …]``, multiplied by a number.

        Args:
            output: The rows, ``[batch, …]``.
            changes: What is added.
            scaling: The number.
            owned: Whether the output may be written to.
        """
        changes = changes if self.places is None else changes.index_select(0, self.places)
        if self.rows is None:
            return (output.add_ if owned else output.add)(changes, alpha=scaling)
        return (output.index_add_ if owned else output.index_add)(0, self.rows, changes, alpha=scaling)

    def spread(self, vectors: Tensor, size: int, fill: float) -> Tensor:
        """Return for each of ``size`` rows its adapter's vector of ``[adapters, features]``, for others a constant."""
        found = vectors.index_select(0, self.slots)
        return (
            found
            if self.rows is None
            else vectors.new_full((size, vectors.shape[1]), fill).index_copy(0, self.rows, found)
        )


class Rows:
    """Which adapter each row of a batch asks for.

    Args:
        names: One adapter's name per row.
        repeated: Whether a model may repeat each row of the batch, as generation does for beams.
    """

    def __init__(self, names: Sequence[str], *, repeated: bool = False) -> None:
        self.names = tuple(names)
        self.repeated = repeated
        #: The different names among them, sorted.
        self.different = tuple(sorted(set(self.names)))
        #: The adapter that every row asks for, however many a layer sees; None if they are to be told apart.
        self.only = self.names[0] if len(self.different) == 1 else None
        #: How many consecutive entries of a layer's input may stand for one row.
        self.multiples = frozenset({1})
        #: How many rows the model's batch has; 0 if its arguments leave that open.
        self.size = len(self.names)
        self._groups: dict[tuple[int, torch.device], tuple[Group, ...]] = {}
        self._places: dict[tuple[int, torch.device, tuple[str, ...]], Places] = {}

    @classmethod
    def all_for(cls, name: str) -> Rows:
        """Return the assignment by which every row, however many there are, asks for one adapter."""
        return cls((name,))

    def expect(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Learn from a model's arguments how rows may appear inside: one by one, repeated, or flattened to tokens.

        Raises:
            MixedBatchError: The batch has another number of rows than there are names.
        """
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        if not tensors:
            return
        # The batch is what has as many rows; other tensors (time steps, a cache's positions) may stand beside it.
        fitting = [tensor for tensor in tensors if self._explains(len(tensor))]
        if not fitting:
            raise MixedBatchError(
                f"adapter_names holds {len(self.names)} names, but the batch has {len(tensors[0])} rows. "
                "Give one name per row."
            )
        repeats = {(len(tensor) // len(self.names), tensor.shape[1] if tensor.dim() > 1 else 1) for tensor in fitting}
        # Time steps may fit by chance, but the batch itself has more than one dimension as a rule.
        sizes = {len(tensor) for tensor in fitting if tensor.dim() > 1} or {len(tensor) for tensor in fitting}
        self.size = sizes.pop() if len(sizes) == 1 else 0
        self.multiples = frozenset({1}.union(*({times, times * tokens} for times, tokens in repeats)))

    def _explains(self, size: int) -> bool:
        number = len(self.names)
        return bool(number and size) and (size == number or (self.repeated and size % number == 0))

    def stands_for_all(self, x: Tensor, batch_dim: int) -> bool:
        """Whether a layer is called with one row that the model computes once for the batch, as positions are.

        A row has a length: ids are ``[1, length]``, features ``[1, length, features]``. One vector or one id alone may
        be anything (a token that was routed here, a query for all), and where it goes then can't be told.

        Args:
            x: The layer's first tensor.
            batch_dim: The dimension along which rows lie.
        """
        has_length = x.dim() > (2 if x.is_floating_point() else 1)
        return self.only is None and self.size > 1 and has_length and x.shape[batch_dim] == 1

    def groups(self, size: int, device: torch.device) -> tuple[Group, ...]:
        """Return the rows of each adapter, for a layer that sees ``size`` rows; made once per size and device.

        Raises:
            MixedBatchError: The layer sees a number of rows that the batch does not explain.
        """
        if self.only is not None:
            return (Group(self.only),)
        key = (size, device)
        if key not in self._groups:
            self._groups[key] = self._make_groups(size, device)
        return self._groups[key]

    def places(self, size: int, device: torch.device, names: tuple[str, ...]) -> Places:
        """Return where the rows of some adapters lie when these are stacked; made once, for all layers alike.

        Args:
            size: How many rows the layer sees.
            device: Where its input is.
            names: The adapters that are stacked, which all have rows.
        """
        key = (size, device, names)
        if key not in self._places:
            members = self._members(size)
            self._places[key] = Places([members[name] for name in names], size, device)
        return self._places[key]

    def _make_groups(self, size: int, device: torch.device) -> tuple[Group, ...]:
        members = self._members(size)
        # By name, so that what is kept for a layer's groups does not depend on the order of the rows.
        return tuple(Group(name, members[name], device) for name in self.different)

    def _members(self, size: int) -> dict[str, list[int]]:
        multiple, rest = divmod(size, len(self.names)) if self.names else (0, 1)
        if rest or multiple not in self.multiples:
            raise MixedBatchError(
                f"adapter_names holds {len(self.names)} names, but a layer was called with {size} rows. "
                "Give one name per row of the batch."
            )
        members: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            rows = range(row * multiple, (row + 1) * multiple)
            if name in members:
                members[name] += rows
            else:
                members[name] = [*rows]
        return members


def _first_differentiable(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.grad_fn is not None else None
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    found = (_first_differentiable(value) for value in values)
    return next((tensor for tensor in found if tensor is not None), None)


class CallState:
    """Whether adapters act, and for which rows; one object per adapted model.

    Attributes:
        enabled: False while adapters are switched off.
        rows: The assignment of a mixed batch, or None.
        prompted: The virtual tokens that the call goes on with, or None; see :mod:`peftcore.prompts`.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.rows: Rows | None = None
        self.prompted: Any = None
        #: Assignments whose graphs may still be differentiated; None until there has been one.
        self._differentiable: weakref.WeakSet[Rows] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model is in no call.
        return {"enabled": self.enabled, "rows": None, "prompted": None, "_differentiable": None}

    def current_rows(self) -> Rows | None:
        """Return the assignment that holds now: the call's, or, where activations are recomputed, that which made them.

        Raises:
            MixedBatchError: Activations are recomputed, and it can't be told for which of several mixed batches.
        """
        if self.rows is not None or not self._differentiable or torch._C._current_graph_task_id() == -1:
            return self.rows
        if len(self._differentiable) > 1:
            raise MixedBatchError(
                "With gradient checkpointing, only one mixed batch can be differentiated at a time: "
                "call backward() before the next forward pass with adapter_names."
            )
        return next(iter(self._differentiable))

    def remember(self, rows: Rows, output: Any) -> None:
        """Know an assignment for as long as its output can be differentiated, since checkpointing runs layers again."""
        tensor = _first_differentiable(output)
        if tensor is not None:
            self._differentiable = weakref.WeakSet() if self._differentiable is None else self._differentiable
            self._differentiable.add(rows)
            tensor.register_hook(lambda gradient, rows=rows: None)  # type: ignore[no-untyped-call]  # keeps the rows alive as long as the graph

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch all adapters off for the time of the block."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    @contextmanager
    def prompting(self, call: Any) -> Iterator[None]:
        """Let virtual tokens go into the model for the time of the block."""
        before, self.prompted = self.prompted, call
        try:
            yield
        finally:
            self.prompted = before

    @contextmanager
    def assigned(self, rows: Rows | None) -> Iterator[None]:
        """Give each row its adapter for the time of the block."""
        before, self.rows = self.rows, rows
        # torch's fused encoder reads weights instead of calling layers, and one weight can't serve different rows.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            self.rows = before
            torch.backends.mha.set_fastpath_enabled(fused)
