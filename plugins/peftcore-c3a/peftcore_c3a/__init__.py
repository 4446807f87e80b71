"""C3A for peftcore: W' = W + Δ with circulant blocks (arXiv 2407.19342)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_c3a.adapter import C3AAdapter
from peftcore_c3a.config import C3AConfig

__all__ = ["C3AAdapter", "C3AConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(name="c3a", config_cls=C3AConfig, adapter_cls=C3AAdapter, prefix="c3a_", paper="2407.19342")


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models; of GPT-2's, the second layer of the feedforward part."""
    if method != "c3a":
        return None
    return ["mlp.c_proj"] if model_type in ("gpt2", "gpt_bigcode") else ATTENTION_PROJECTIONS.get(model_type)
