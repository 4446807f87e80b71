"""IA3 for peftcore: y = l ∘ (W x + b), or W (l ∘ x) + b (arXiv 2205.05638)."""

from peftcore import PeftMethod, hookimpl
from peftcore_ia3.adapter import IA3Adapter
from peftcore_ia3.config import IA3Config
from peftcore_ia3.default_targets import TARGETS
from peftcore_ia3.tuner import IA3Tuner

__all__ = ["IA3Adapter", "IA3Config", "IA3Tuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=IA3Config, adapter_cls=IA3Adapter, tuner_cls=IA3Tuner, default_targets=TARGETS, paper="2205.05638"
    )
