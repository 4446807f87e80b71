"""CallState: what holds for one call on a whole model, shared by all of its adapted layers.

Switching adapters off and giving each row of a batch its own adapter are decisions about a call, not about a layer.
They are said once, here, so they cost the same for ten layers and for ten thousand, and nothing is left behind in the
layers when a call fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        index: The rows, ``[rows]`` of int64; None means all of them.
    """

    name: str
    index: Tensor | None


class Rows:
    """Which adapter each row of a batch asks for.

    Args:
        names: One adapter's name per row.
        multiples: How many consecutive entries of a layer's input may stand for one row: 1, and the number of tokens
            where a model flattens its batch, and the number of beams.
    """

    def __init__(self, names: Sequence[str], multiples: Iterable[int] = (1,)) -> None:
        self.names = tuple(names)
        self.multiples = frozenset(multiples) | {1}
        self._groups: dict[tuple[int, torch.device], tuple[Group, ...]] = {}

    @classmethod
    def all_for(cls, name: str) -> Rows:
        """Return the assignment by which every row, however many there are, asks for one adapter."""
        rows = cls(())
        rows.only = name
        return rows

    #: The adapter that every row asks for, if they are not told apart.
    only: str | None = None

    def expect(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Learn from a model's arguments how the batch may appear inside: repeated by beams, flattened to tokens.

        Raises:
            MixedBatchError: The batch has another number of rows than there are names.
        """
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), None)
        if first is None:
            return
        repeats, rest = divmod(len(first), len(self.names)) if self.names else (0, 1)
        if rest or not repeats:
            raise MixedBatchError(
                f"adapter_names holds {len(self.names)} names, but the batch has {len(first)} rows. Give one per row."
            )
        tokens = first.shape[1] if first.dim() > 1 else 1
        self.multiples = frozenset({1, repeats, repeats * tokens})

    def groups(self, size: int, device: torch.device) -> tuple[Group, ...]:
        """Return the rows of each adapter, for a layer that sees ``size`` rows; made once per size and device.

        Raises:
            MixedBatchError: The layer sees a number of rows that the batch does not explain.
        """
        if self.only is not None:
            return (Group(self.only, None),)
        key = (size, device)
        if key not in self._groups:
            self._groups[key] = self._make_groups(size, device)
        return self._groups[key]

    def _make_groups(self, size: int, device: torch.device) -> tuple[Group, ...]:
        multiple, rest = divmod(size, len(self.names)) if self.names else (0, 1)
        if rest or multiple not in self.multiples:
            raise MixedBatchError(
                f"adapter_names holds {len(self.names)} names, but a layer was called with {size} rows. "
                "Give one name per row of the batch."
            )
        members: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            members.setdefault(name, []).extend(range(row * multiple, (row + 1) * multiple))
        if len(members) == 1:
            return (Group(self.names[0], None),)
        return tuple(Group(name, torch.tensor(rows, device=device)) for name, rows in members.items())


class CallState:
    """Whether adapters act, and for which rows; one object per adapted model.

    Attributes:
        enabled: False while adapters are switched off.
        rows: The assignment of a mixed batch, or None.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.rows: Rows | None = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch all adapters off for the time of the block."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

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
