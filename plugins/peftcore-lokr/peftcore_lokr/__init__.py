"""LoKr for peftcore: W' = W + s · C ⊗ D (arXiv 2309.14859)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_lokr.adapter import LoKrAdapter
from peftcore_lokr.config import LoKrConfig

__all__ = ["LoKrAdapter", "LoKrConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(name="lokr", config_cls=LoKrConfig, adapter_cls=LoKrAdapter, prefix="lokr_", paper="2309.14859")


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models."""
    return ATTENTION_PROJECTIONS.get(model_type) if method == "lokr" else None
