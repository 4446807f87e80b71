"""Columns: what the columns of a mask stand for, once there are virtual tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peftcore.prompts.layout import Layout, positions_of


@dataclass(frozen=True)
class Columns:
    """First what a cache held before, then a prefix in the cache, then tokens with virtual ones among them.

    Attributes:
        past: How many places the cache held before there was any virtual token.
        prefix: Which places of the prefix are used, ``[rows, slots]``, bool; None without one.
        layout: Where virtual embeddings stand among the tokens; None without any.
        all_used: Whether every slot is known to be used; asking the tensors would wait for their device.
    """

    past: int = 0
    prefix: Tensor | None = None
    layout: Layout | None = None
    all_used: bool = False

    @property
    def slots(self) -> int:
        """How many columns virtual tokens take."""
        own = 0 if self.layout is None else self.layout.slots
        return own + self.in_cache - self.past

    @property
    def in_cache(self) -> int:
        """How many columns stand for what is in the cache, the prefix included."""
        return self.past + (0 if self.prefix is None else self.prefix.shape[1])

    def used(self) -> Tensor:
        """Return how many virtual tokens each row has, ``[rows, 1]``."""
        parts = [self.prefix, None if self.layout is None else self.layout.used]
        return torch.stack([part.sum(1, keepdim=True) for part in parts if part is not None]).sum(0)

    def is_full(self) -> bool:
        """Whether every slot is used."""
        parts = [self.prefix, None if self.layout is None else self.layout.used]
        return self.all_used or all(bool(part.all()) for part in parts if part is not None)

    def shifts_rows(self) -> bool:
        """Whether tokens of some rows stand further from the beginning than they would alone."""
        front = None if self.layout is None or self.layout.empty_at_end else self.layout.used
        return not self.all_used and any(not bool(part.all()) for part in (self.prefix, front) if part is not None)

    def widen(self, mask: Tensor) -> Tensor:
        """Return a mask of the tokens ``[rows, past + length]``, with columns for the virtual ones."""
        past, own = mask[:, : self.past], mask[:, self.past :]
        own = own if self.layout is None else self.layout.widen_mask(own)
        prefix = [] if self.prefix is None else [self.prefix.to(mask.dtype)]
        return torch.cat([past, *prefix, own], 1)

    def inserted(self, length: int, rows: int, device: torch.device) -> Tensor:
        """Return which of so many columns are slots, ``[rows, length]``, bool; virtual tokens are counted in."""
        own = torch.zeros(rows, length - self.slots, dtype=torch.bool, device=device)
        past, own = own[:, : self.past], own[:, self.past :]
        prefix = [] if self.prefix is None else [torch.ones_like(self.prefix)]
        return torch.cat([past, *prefix, own if self.layout is None else self.layout.fill(True, own)], 1)

    def positions(self, mask: Tensor) -> Tensor:
        """Return positions for the places behind the cache, ``[rows, columns]``, from the widened mask.

        In rows without virtual tokens they are what the model counts by itself, whatever the mask hides.
        """
        counted = positions_of(mask)[:, self.in_cache :]
        length = counted.shape[1] - (0 if self.layout is None else self.layout.slots)
        plain = torch.arange(self.past, self.past + length, device=mask.device).expand(len(mask), -1)
        plain = plain if self.layout is None else self.layout.fill(0, plain)
        return torch.where(self.used() > 0, counted, plain)

    def places(self, length: int) -> tuple[Tensor, Tensor]:
        """Return which columns are virtual embeddings, and from which slot, for rows of so many tokens.

        Returns:
            bool and int64, both ``[rows, columns]``.
        """
        assert self.layout is not None
        virtual, slot = self.layout.slot_of(length)
        pad = torch.nn.functional.pad
        return pad(virtual, (self.in_cache, 0)), pad(slot, (self.in_cache, 0))

    def widen_square(self, mask: Tensor, *, causal: bool) -> Tensor:
        """Return a mask ``[rows, 1, length, past + length]`` with virtual tokens, which tokens see.

        Virtual tokens see each other, those before them if causal; else they also see every token that any token sees.

        Args:
            mask: Of bool, True for what is seen; or of numbers that are added.
            causal: Whether no token sees later ones.
        """
        seen, hidden = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
        parts = [self.prefix, None if self.layout is None else self.layout.used]
        in_front = torch.cat([part for part in parts if part is not None], 1)
        shown = torch.full_like(in_front, hidden, dtype=mask.dtype).masked_fill(in_front, seen)
        shown = shown[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
        wide = torch.cat([mask[..., : self.past], shown, mask[..., self.past :]], -1)
        if self.layout is None:
            return wide
        queries = self.layout.slots
        rows = wide.amax(2, keepdim=True).expand(-1, -1, queries, -1).clone()
        if causal:
            place = torch.arange(wide.shape[-1], device=mask.device)
            query = torch.arange(queries, device=mask.device) + self.past + self.slots - queries
            rows.masked_fill_(place > query[:, None], hidden)
        return torch.cat([rows, wide], 2)
