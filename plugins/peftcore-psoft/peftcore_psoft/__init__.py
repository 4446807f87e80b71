"""PSOFT for peftcore: W' = W + B · (R − I) · A, a rotation of W's principal subspace (arXiv 2505.11235)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_psoft.adapter import PsoftAdapter
from peftcore_psoft.config import PsoftConfig

__all__ = ["PsoftAdapter", "PsoftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="psoft",
        config_cls=PsoftConfig,
        adapter_cls=PsoftAdapter,
        prefix="psoft_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2505.11235",
    )
