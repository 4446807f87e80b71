"""LoRA for peftcore: W' = W + s · B · A (arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore_lora.adapter import LoraAdapter
from peftcore_lora.config import LoraConfig
from peftcore_lora.default_targets import TARGETS

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
        paper="2106.09685",
    )


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models."""
    return TARGETS.get(model_type) if method == "lora" else None
