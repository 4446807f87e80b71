"""DEFT for peftcore: W' = W − Q · Fᵀ · W + s · Q · R (arXiv 2509.22793), and PaRa, the same without R (2406.05641)."""

from peftcore import PeftMethod, hookimpl
from peftcore_deft.adapter import DeftAdapter
from peftcore_deft.config import DeftConfig

__all__ = ["DeftAdapter", "DeftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=DeftConfig, adapter_cls=DeftAdapter, paper="2509.22793")
