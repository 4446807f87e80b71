"""AdaptionPromptTuner: takes whole attention modules, the last ones of those that are named."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from peftcore.base_layers import BaseLayer, OpaqueLayer
from peftcore.slots import Slot
from peftcore.targets import OnUnmatched, TargetReport
from peftcore.tuner import LayerTuner
from peftcore_adaption_prompt.config import AdaptionPromptConfig
from peftcore_adaption_prompt.projections import names_in


class AdaptionPromptTuner(LayerTuner):
    """Puts adaption prompts on the last attentions of a model."""

    config: AdaptionPromptConfig

    def view(self, module: nn.Module) -> BaseLayer | None:
        """Return the view of an attention as a whole, None if it shows no projections."""
        return OpaqueLayer(module) if names_in(module, self.config) is not None else None

    def plan(self, report: TargetReport[BaseLayer], on_unmatched: OnUnmatched = "error") -> list[Slot]:
        """Turn the last modules that were matched into slots.

        Raises:
            ConfigError: There are fewer.
        """
        number = self.config.adapter_layers or 0
        if number > len(report.matched):
            self.config.refuse("adapter_layers", f"is {number}, and {len(report.matched)} attention modules were found")
        return super().plan(replace(report, matched=report.matched[-number:]), on_unmatched)

    def target_names(self) -> set[str]:
        """Return the names of the attention modules, of which the config counts those that are meant."""
        return set(self.default_targets() or ()) or super().target_names()
