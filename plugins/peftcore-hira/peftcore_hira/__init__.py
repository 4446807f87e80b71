"""HiRA for peftcore: W' = W + W ∘ (B · A) (openreview TwJrTz9cRS)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_hira.adapter import HiraAdapter
from peftcore_hira.config import HiraConfig

__all__ = ["HiraAdapter", "HiraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="hira",
        config_cls=HiraConfig,
        adapter_cls=HiraAdapter,
        prefix="hira_",
        paper="https://openreview.net/forum?id=TwJrTz9cRS",
    )


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models."""
    return ATTENTION_PROJECTIONS.get(model_type) if method == "hira" else None
