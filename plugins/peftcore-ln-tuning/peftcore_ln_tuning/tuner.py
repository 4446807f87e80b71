"""LNTuningTuner: takes every module as a whole, whatever is in it."""

from __future__ import annotations

import itertools

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
        # In this order, what lies inside of a target comes right after it.
        for outer, path in itertools.pairwise(sorted(match.path.split(".") for match in report.matched)):
            if path[: len(outer)] == outer:
                names = ".".join(outer), ".".join(path)
                raise TargetError("target_modules names {}, of which {} is a part. Keep one of the two.".format(*names))
        return super().plan(report, on_unmatched)
