"""LoHa for peftcore: W' = W + s · (B₁ · A₁) ∘ (B₂ · A₂) (arXiv 2108.06098)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_loha.adapter import LoHaAdapter
from peftcore_loha.config import LoHaConfig

__all__ = ["LoHaAdapter", "LoHaConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="loha",
        config_cls=LoHaConfig,
        adapter_cls=LoHaAdapter,
        prefix="hada_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2108.06098",
    )
