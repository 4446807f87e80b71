"""FrodTuner: finds out which layers share a basis, and follows the basis that a file brings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from peftcore.base_layers import BaseLayer
from peftcore.building import making_tensors_on
from peftcore.slots import Slot
from peftcore.targets import OnUnmatched, TargetReport
from peftcore.tuner import LayerTuner
from peftcore_frod.adapter import FrodAdapter
from peftcore_frod.bases import FrodBases, category_of
from peftcore_frod.config import FrodConfig


class FrodTuner(LayerTuner):
    """Puts FRoD on the layers of a model."""

    config: FrodConfig
    #: Of the layers, in order.
    categories: Sequence[str] = ()

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn what was matched into slots, and remember their categories."""
        slots = super().plan(report, on_unmatched)
        self.categories = [category_of(slot.path) for slot in slots if not slot.auxiliary]
        return slots

    def make_shared(
        self, bases: Sequence[BaseLayer], low_cpu_mem_usage: bool = False, autocast_adapter_dtype: bool = True
    ) -> nn.Module | None:
        """Find the bases, unless a file is going to bring them."""
        if not bases:
            return None
        device = bases[0].device
        brought = device.type == "meta" or (self.comes_from_file and self.config.save_projection)
        with making_tensors_on(device):
            shared = FrodBases(self.config, bases, self.categories, found_in_file=brought)
        # In nothing coarser than float32, whatever the adapter's dtype: inverses amplify rounding.
        return shared.to(functools.reduce(torch.promote_types, (base.dtype for base in bases), torch.float32))

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Find out what the frozen weights do with the directions of the bases that a file brings."""
        super().before_load(state)
        if isinstance(self.shared, FrodBases):
            self.shared.announce(state)
            for module in self.modules():
                for part in module.modules():
                    if isinstance(part, FrodAdapter):
                        part.follow_basis()
