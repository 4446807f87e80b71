"""LoRA for peftcore: W' = W + s · B · A (arXiv 2106.09685)."""

from peftcore import PeftMethod, hookimpl
from peftcore_lora.adapter import LoraAdapter
from peftcore_lora.config import LoraConfig

__all__ = ["LoraAdapter", "LoraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=LoraConfig, adapter_cls=LoraAdapter, shares_prefix=True, paper="2106.09685")
