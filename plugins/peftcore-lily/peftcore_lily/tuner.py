"""LilyTuner: gives the layers of a model the factors that they share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from peftcore.base_layers import BaseLayer
from peftcore.slots import Slot
from peftcore.targets import ALL_LINEAR, OnUnmatched, TargetReport
from peftcore.targets.matcher import EVERY_LAYER
from peftcore.tuner import LayerTuner
from peftcore_lily.adapter import LilyAdapter, Shared
from peftcore_lily.config import LilyConfig


class LilyTuner(LayerTuner):
    """Puts Lily on the layers of a model.

    Layers that one entry of the targets means and that have the same sizes form a group, in the order of the model.
    The group shares B, and each ``stride_A`` of its layers share A.
    """

    config: LilyConfig

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots whose adapters share factors."""
        slots = super().plan(report, on_unmatched)
        entries = {match.path: match.pattern for match in report.matched if not match.parts}
        groups: dict[Any, list[Slot]] = {}
        for slot in slots:
            if slot.path in entries and not slot.auxiliary:
                alike = _entry(entries[slot.path], slot.path), slot.base.in_features, slot.base.out_features
                groups.setdefault(alike, []).append(slot)
        for group in groups.values():
            self._connect(group)
        return slots

    def _connect(self, group: Sequence[Slot]) -> None:
        for number, slot in enumerate(group):
            a, b = group[number - number % self.config.stride_A], group[0]
            make = functools.partial(self._connected, None if a is slot else a, None if b is slot else b)
            slot.make = functools.cache(make)

    def _connected(self, a: Slot | None, b: Slot | None, base: BaseLayer) -> LilyAdapter:
        """Make an adapter with the factors of other slots' adapters, which have been made before."""
        lily_a = a.make(a.base).lily_A if a else None
        lily_b = b.make(b.base).lily_B if b else None
        return LilyAdapter(base, self.config, Shared(lily_a, lily_b))  # type: ignore[arg-type]

    def target_names(self) -> set[str]:
        """Return the last components of the adapted modules' paths if they mean just these modules, else nothing.

        By whole paths, no two layers would be meant by one entry.
        """
        names = super().target_names()
        return set() if any("." in name for name in names) else names


def _entry(pattern: str, path: str) -> str:
    """Return the entry that means a layer; the layer's own name where layers are found by what they are."""
    return path.rpartition(".")[2] if pattern in (ALL_LINEAR, EVERY_LAYER) else pattern
