"""LNTuningTuner: takes every module as a whole, whatever is in it."""

from __future__ import annotations

from torch import nn

from peftcore.base_layers import BaseLayer, OpaqueLayer
from peftcore.exceptions import TargetError
from peftcore.slots import Slot
from peftcore.targets import OnUnmatched, TargetReport
from peftcore.tuner import LayerTuner


class LNTuningTuner(LayerTuner):
    """Puts LN tuning on the layers of a model."""

    def view(self, module: nn.Module) -> BaseLayer:
        """Return the view of a module as a whole."""
        return OpaqueLayer(module)

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots.

        Raises:
            TargetError: One target lies inside another, of which the copy would act alone.
        """
        paths = {match.path for match in report.matched}
        for path in sorted(paths):
            parts = path.split(".")
            for depth in range(1, len(parts)):
                if (outer := ".".join(parts[:depth])) in paths:
                    raise TargetError(f"target_modules names {outer}, of which {path} is a part. Keep one of the two.")
        return super().plan(report, on_unmatched)
