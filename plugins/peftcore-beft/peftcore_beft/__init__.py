"""BEFT for peftcore: y = W x + b + δ (arXiv 2509.15974)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore_beft.adapter import BeftAdapter
from peftcore_beft.config import BeftConfig
from peftcore_beft.default_targets import TARGETS

__all__ = ["BeftAdapter", "BeftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="beft",
        config_cls=BeftConfig,
        adapter_cls=BeftAdapter,
        prefix="beft_",
        default_targets=TARGETS,
        paper="2509.15974",
    )
