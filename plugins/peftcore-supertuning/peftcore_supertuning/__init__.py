"""Super-Tuning for peftcore: W' = W + S with S sparse, and Supra, the same plus B · A (arXiv 2607.09287)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_supertuning.adapter import SupertuningAdapter
from peftcore_supertuning.config import SupertuningConfig

__all__ = ["SupertuningAdapter", "SupertuningConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="supertuning",
        config_cls=SupertuningConfig,
        adapter_cls=SupertuningAdapter,
        prefix="supertuning_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2607.09287",
    )
