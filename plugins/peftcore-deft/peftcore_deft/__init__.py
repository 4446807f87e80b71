"""DEFT for peftcore: W' = W − Q · Fᵀ · W + s · Q · R (arXiv 2509.22793), and PaRa, the same without R (2406.05641)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_deft.adapter import DeftAdapter
from peftcore_deft.config import DeftConfig

__all__ = ["DeftAdapter", "DeftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="deft",
        config_cls=DeftConfig,
        adapter_cls=DeftAdapter,
        prefix="deft_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2509.22793",
    )
