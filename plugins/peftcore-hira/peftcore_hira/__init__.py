"""HiRA for peftcore: W' = W + W ∘ (B · A) (openreview TwJrTz9cRS)."""

from __future__ import annotations

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
        default_targets=ATTENTION_PROJECTIONS,
        paper="https://openreview.net/forum?id=TwJrTz9cRS",
    )
