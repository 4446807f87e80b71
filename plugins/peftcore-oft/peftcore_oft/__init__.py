"""OFT for peftcore: W' = W · blockdiag(R₁ … R_D) with orthogonal blocks (arXiv 2306.07280, 2506.19847)."""

from peftcore import PeftMethod, hookimpl
from peftcore_oft.adapter import OFTAdapter
from peftcore_oft.config import OFTConfig

__all__ = ["OFTAdapter", "OFTConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=OFTConfig, adapter_cls=OFTAdapter, paper="2306.07280")
