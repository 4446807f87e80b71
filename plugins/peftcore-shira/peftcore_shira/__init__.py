"""SHiRA for peftcore: W' = W + S, with S sparse (arXiv 2406.13175)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_shira.adapter import ShiraAdapter
from peftcore_shira.config import MaskFunction, ShiraConfig

__all__ = ["MaskFunction", "ShiraAdapter", "ShiraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="shira", config_cls=ShiraConfig, adapter_cls=ShiraAdapter, prefix="shira_", paper="2406.13175"
    )


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models."""
    if method != "shira":
        return None
    return ["q_proj", "v_proj"] if model_type == "phi" else ATTENTION_PROJECTIONS.get(model_type)
