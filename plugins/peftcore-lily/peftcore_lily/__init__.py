"""Lily for peftcore: ΔW(x) = A · Σₑ router(x)ₑ · Bₑ, with A and B shared across layers (arXiv 2407.09946)."""

from peftcore import PeftMethod, hookimpl
from peftcore_lily.adapter import LilyAdapter
from peftcore_lily.config import LilyConfig
from peftcore_lily.tuner import LilyTuner

__all__ = ["LilyAdapter", "LilyConfig", "LilyTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=LilyConfig, adapter_cls=LilyAdapter, tuner_cls=LilyTuner, paper="2407.09946")
