"""GLoRA for peftcore: W' = W + W ∘ A + B, b' = b + b ∘ D + E + W · C (arXiv 2306.07967)."""

from peftcore import PeftMethod, hookimpl
from peftcore_glora.adapter import GloraAdapter
from peftcore_glora.config import GloraConfig
from peftcore_glora.tuner import GloraTuner

__all__ = ["GloraAdapter", "GloraConfig", "GloraTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=GloraConfig, adapter_cls=GloraAdapter, tuner_cls=GloraTuner, paper="2306.07967")
