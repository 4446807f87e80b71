"""OFT for peftcore: W' = W · blockdiag(R₁ … R_D) with orthogonal blocks (arXiv 2306.07280, 2506.19847)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_oft.adapter import OFTAdapter
from peftcore_oft.config import OFTConfig

__all__ = ["OFTAdapter", "OFTConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="oft",
        config_cls=OFTConfig,
        adapter_cls=OFTAdapter,
        prefix="oft_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2306.07280",
    )
