"""BEFT for peftcore: y = W x + b + δ (arXiv 2509.15974)."""

from peftcore import PeftMethod, hookimpl
from peftcore_beft.adapter import BeftAdapter
from peftcore_beft.config import BeftConfig
from peftcore_beft.default_targets import TARGETS

__all__ = ["BeftAdapter", "BeftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=BeftConfig, adapter_cls=BeftAdapter, default_targets=TARGETS, paper="2509.15974")
