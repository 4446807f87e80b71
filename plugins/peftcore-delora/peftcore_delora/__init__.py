"""DeLoRA for peftcore: W' = W + (λ / r) · B · Ξ · A · diag(‖W‖), direction and distance apart (arXiv 2503.18225)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_delora.adapter import DeloraAdapter
from peftcore_delora.config import DeloraConfig

__all__ = ["DeloraAdapter", "DeloraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="delora",
        config_cls=DeloraConfig,
        adapter_cls=DeloraAdapter,
        prefix="delora_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2503.18225",
    )
