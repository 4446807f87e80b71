"""Uni-LoRA for peftcore: W' = W + B · A, all of whose entries come from one vector (arXiv 2506.00799)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_unilora.adapter import UniLoraAdapter
from peftcore_unilora.config import UniLoraConfig
from peftcore_unilora.vector import UniLoraVector

__all__ = ["UniLoraAdapter", "UniLoraConfig", "UniLoraVector"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="unilora",
        config_cls=UniLoraConfig,
        adapter_cls=UniLoraAdapter,
        shared_cls=UniLoraVector,
        prefix="unilora_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2506.00799",
    )
