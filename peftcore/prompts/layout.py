"""Layout: where virtual tokens stand among the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor


class _Rank(IntEnum):
    """The order in a row."""

    PADDING = 0
    EMPTY_IN_FRONT = 1
    VIRTUAL = 2
    TOKEN = 3
    EMPTY_AT_END = 4


@dataclass(frozen=True)
class Layout:
    """Virtual tokens stand in front of a row's tokens, behind the padding on the left.

    So each row reads as it would alone: padding, virtual tokens, tokens.
    A row with fewer virtual tokens than there are slots leaves slots empty: in front of the virtual tokens, so that all
    rows end together, as generation needs it; or at the end, so that the first place is what it would be alone, as
    encoders need it.

    Attributes:
        used: Which slots hold a virtual token, ``[rows, slots]``, bool.
        offsets: How many places on the left are padding, ``[rows]``, int64; None for none.
        empty_at_end: Where the empty slots are.
        all_used: Whether every slot is known to hold one; asking the tensor would wait for its device.
    """

    used: Tensor
    offsets: Tensor | None = None
    empty_at_end: bool = False
    all_used: bool = False
    _orders: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def slots(self) -> int:
        """How much longer each row becomes."""
        return self.used.shape[1]

    @property
    def in_front(self) -> bool:
        """Whether the slots are known to stand in front of all else in every row."""
        return self.all_used and self.offsets is None

    def insert(self, front: Tensor, values: Tensor) -> Tensor:
        """Return values ``[rows, length, …]`` with what stands in the slots, ``[rows, slots, …]``, at its place."""
        joined = torch.cat([front.to(values.dtype), values], 1)
        if self.in_front:
            return joined
        length = values.shape[1]
        source = self._orders[length] = self._orders[length] if length in self._orders else self._order(length)
        index = source.reshape(*source.shape, *[1] * (values.dim() - 2)).expand(joined.shape)
        return joined.gather(1, index)

    def _order(self, length: int) -> Tensor:
        """Return which of the slots and the places behind them stands where, ``[rows, slots + length]``."""
        empty = _Rank.EMPTY_AT_END if self.empty_at_end else _Rank.EMPTY_IN_FRONT
        slots = torch.where(self.used, int(_Rank.VIRTUAL), int(empty))
        tokens = slots.new_full((len(slots), length), _Rank.TOKEN)
        if self.offsets is not None:
            place = torch.arange(length, device=slots.device)
            tokens = tokens.masked_fill(place < self.offsets[:, None], _Rank.PADDING)
        return torch.cat([slots, tokens], 1).argsort(dim=1, stable=True)

    def full(self) -> Layout:
        """Return the layout as it would be if empty slots were used."""
        return replace(self, used=torch.ones_like(self.used), all_used=True)

    def fill(self, number: float, values: Tensor) -> Tensor:
        """Return values ``[rows, length, …]`` with one number in all slots."""
        return self.insert(values.new_full((len(values), self.slots, *values.shape[2:]), number), values)

    def widen_mask(self, mask: Tensor) -> Tensor:
        """Return a mask ``[rows, length]`` that shows the slots that are used, and hides the others."""
        return self.insert(self.used, mask)

    def widen_positions(self, positions: Tensor) -> Tensor:
        """Return position ids ``[rows or 1, length]``, in which the tokens go on behind the virtual ones."""
        positions = positions.expand(len(self.used), -1)
        first = self.first(positions)
        number = self.used.sum(1, keepdim=True)
        own = (self.used.cumsum(1) - 1).clamp(min=0) + first
        shifted = positions + number
        if self.offsets is not None:
            place = torch.arange(positions.shape[1], device=positions.device)
            shifted = torch.where(place < self.offsets[:, None], positions, shifted)
        return self.insert(own, shifted)

    def first(self, values: Tensor) -> Tensor:
        """Return what stands first behind the padding, of values ``[rows, length]``; the last if all is padding."""
        if self.offsets is None:
            return values[:, :1]
        return values.gather(1, self.offsets[:, None].clamp(max=values.shape[1] - 1))

    def slot_of(self, length: int) -> tuple[Tensor, Tensor]:
        """Return, for rows of so many tokens, which places are virtual tokens, and from which slot.

        Returns:
            bool and int64, both ``[rows, slots + length]``.
        """
        rows = len(self.used)
        numbers = torch.arange(self.slots, device=self.used.device).expand(rows, -1)
        return (
            self.insert(self.used, self.used.new_zeros(rows, length)),
            self.insert(numbers, numbers.new_zeros(rows, length)),
        )


def padding_on_the_left(mask: Tensor) -> Tensor:
    """Return how many places each row of a mask ``[rows, length]`` hides before the first that it shows, ``[rows]``."""
    return (mask.cumsum(1) == 0).sum(1)


def positions_of(mask: Tensor) -> Tensor:
    """Return the position of each place of a mask ``[rows, length]``; hidden places before shown ones don't count.

    Padding on the right goes on counting, as models do by themselves.
    """
    in_front = (mask == 0) & (mask.flip(1).cumsum(1).flip(1) > 0)
    place = torch.arange(mask.shape[1], device=mask.device)
    return (place - in_front.cumsum(1)).clamp(min=0)
