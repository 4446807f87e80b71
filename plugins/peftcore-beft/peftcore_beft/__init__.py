"""BEFT for peftcore: y = W x + b + δ (arXiv 2509.15974)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore_beft.adapter import BeftAdapter
from peftcore_beft.config import BeftConfig
from peftcore_beft.default_targets import TARGETS

__all__ = ["BeftAdapter", "BeftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(name="beft", config_cls=BeftConfig, adapter_cls=BeftAdapter, prefix="beft_", paper="2509.15974")


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the value projections of the usual models."""
    return TARGETS.get(model_type) if method == "beft" else None
