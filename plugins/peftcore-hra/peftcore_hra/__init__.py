"""HRA for peftcore: W' = W · H₁ · … · H_r, a chain of Householder reflections (arXiv 2405.17484)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_hra.adapter import HRAAdapter
from peftcore_hra.config import HRAConfig

__all__ = ["HRAAdapter", "HRAConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="hra",
        config_cls=HRAConfig,
        adapter_cls=HRAAdapter,
        prefix="hra_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2405.17484",
    )
