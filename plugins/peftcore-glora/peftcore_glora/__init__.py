"""GLoRA for peftcore: W' = W + W ∘ A + B, b' = b + b ∘ D + E + W · C (arXiv 2306.07967)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_glora.adapter import GloraAdapter
from peftcore_glora.config import GloraConfig
from peftcore_glora.tuner import GloraTuner

__all__ = ["GloraAdapter", "GloraConfig", "GloraTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="glora",
        config_cls=GloraConfig,
        adapter_cls=GloraAdapter,
        tuner_cls=GloraTuner,
        prefix="glora_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2306.07967",
    )
