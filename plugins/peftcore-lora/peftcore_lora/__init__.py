"""LoRA for peftcore: W' = W + s · B · A (arXiv 2106.09685)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_lora.adapter import LoraAdapter
from peftcore_lora.config import LoraConfig

__all__ = ["LoraAdapter", "LoraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="lora",
        config_cls=LoraConfig,
        adapter_cls=LoraAdapter,
        prefix="lora_",
        shares_prefix=True,
        default_targets=ATTENTION_PROJECTIONS,
        paper="2106.09685",
    )
