"""Uni-LoRA for peftcore: W' = W + B · A, all of whose entries come from one vector (arXiv 2506.00799)."""

from peftcore import PeftMethod, hookimpl
from peftcore_unilora.adapter import UniLoraAdapter
from peftcore_unilora.config import UniLoraConfig
from peftcore_unilora.vector import UniLoraVector

__all__ = ["UniLoraAdapter", "UniLoraConfig", "UniLoraVector"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=UniLoraConfig, adapter_cls=UniLoraAdapter, shared_cls=UniLoraVector, paper="2506.00799"
    )
