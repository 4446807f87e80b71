"""LoHa for peftcore: W' = W + s · (B₁ · A₁) ∘ (B₂ · A₂) (arXiv 2108.06098)."""

from peftcore import PeftMethod, hookimpl
from peftcore_loha.adapter import LoHaAdapter
from peftcore_loha.config import LoHaConfig

__all__ = ["LoHaAdapter", "LoHaConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=LoHaConfig, adapter_cls=LoHaAdapter, prefix="hada_", paper="2108.06098")
