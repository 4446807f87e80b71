"""Lily for peftcore: ΔW(x) = A · Σₑ router(x)ₑ · Bₑ, with A and B shared across layers (arXiv 2407.09946)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_lily.adapter import LilyAdapter
from peftcore_lily.config import LilyConfig
from peftcore_lily.tuner import LilyTuner

__all__ = ["LilyAdapter", "LilyConfig", "LilyTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="lily",
        config_cls=LilyConfig,
        adapter_cls=LilyAdapter,
        tuner_cls=LilyTuner,
        default_targets=ATTENTION_PROJECTIONS,
        paper="2407.09946",
    )
