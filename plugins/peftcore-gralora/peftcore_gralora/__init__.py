"""GraLoRA for peftcore: W' = W + Δ, where each of k × k blocks of Δ is of low rank (arXiv 2505.20355)."""

from peftcore import PeftMethod, hookimpl
from peftcore_gralora.adapter import GraloraAdapter
from peftcore_gralora.config import GraloraConfig

__all__ = ["GraloraAdapter", "GraloraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=GraloraConfig, adapter_cls=GraloraAdapter, paper="2505.20355")
