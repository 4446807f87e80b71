"""LoHa for peftcore: W' = W + s · (B₁ · A₁) ∘ (B₂ · A₂) (arXiv 2108.06098)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_loha.adapter import LoHaAdapter
from peftcore_loha.config import LoHaConfig

__all__ = ["LoHaAdapter", "LoHaConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(name="loha", config_cls=LoHaConfig, adapter_cls=LoHaAdapter, prefix="hada_", paper="2108.06098")


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models."""
    return ATTENTION_PROJECTIONS.get(model_type) if method == "loha" else None
