"""GraLoRA for peftcore: W' = W + Δ, where each of k × k blocks of Δ is of low rank (arXiv 2505.20355)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_gralora.adapter import GraloraAdapter
from peftcore_gralora.config import GraloraConfig

__all__ = ["GraloraAdapter", "GraloraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="gralora",
        config_cls=GraloraConfig,
        adapter_cls=GraloraAdapter,
        prefix="gralora_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2505.20355",
    )
