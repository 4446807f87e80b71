"""TinyLoRA for peftcore: W' = W + B · (Σᵢ vᵢ Pᵢ) · A, where only the vectors v train (arXiv 2602.04118)."""

from peftcore import PeftMethod, hookimpl
from peftcore_tinylora.adapter import TinyLoraAdapter
from peftcore_tinylora.config import TinyLoraConfig
from peftcore_tinylora.vectors import TinyLoraVectors

__all__ = ["TinyLoraAdapter", "TinyLoraConfig", "TinyLoraVectors"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=TinyLoraConfig, adapter_cls=TinyLoraAdapter, shared_cls=TinyLoraVectors, paper="2602.04118"
    )
