"""WaveFTTuner: shares the entries out between layers of different sizes, if it is asked to."""

from __future__ import annotations

import math

from peftcore.adapters.base import Adapter
from peftcore.base_layers import BaseLayer
from peftcore.slots import Slot
from peftcore.targets import OnUnmatched, TargetReport
from peftcore.tuner import LayerTuner
from peftcore_waveft.config import WaveFTConfig


class WaveFTTuner(LayerTuner):
    """Puts WaveFT on the layers of a model."""

    config: WaveFTConfig
    _mean_size: float

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots, and find out how large the layers are."""
        slots = super().plan(report, on_unmatched)
        sizes = [math.prod(slot.base.matrix_shape) for slot in slots if not slot.auxiliary]
        self._mean_size = sum(sizes) / max(1, len(sizes))
        return slots

    def make_adapter(self, path: str, base: BaseLayer) -> Adapter:
        """Make the adapter module for one layer, with its share of the entries."""
        if not self.config.proportional_parameters:
            return super().make_adapter(path, base)
        share = round(self.config.n_frequency * math.prod(base.matrix_shape) / self._mean_size)
        return self.adapter_cls()(base, self.config.unchecked_copy(n_frequency=max(1, share)))
