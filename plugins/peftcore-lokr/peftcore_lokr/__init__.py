"""LoKr for peftcore: W' = W + s · C ⊗ D (arXiv 2309.14859)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_lokr.adapter import LoKrAdapter
from peftcore_lokr.config import LoKrConfig

__all__ = ["LoKrAdapter", "LoKrConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="lokr",
        config_cls=LoKrConfig,
        adapter_cls=LoKrAdapter,
        prefix="lokr_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2309.14859",
    )
