"""HRA for peftcore: W' = W · H₁ · … · H_r, a chain of Householder reflections (arXiv 2405.17484)."""

from peftcore import PeftMethod, hookimpl
from peftcore_hra.adapter import HRAAdapter
from peftcore_hra.config import HRAConfig

__all__ = ["HRAAdapter", "HRAConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=HRAConfig, adapter_cls=HRAAdapter, paper="2405.17484")
