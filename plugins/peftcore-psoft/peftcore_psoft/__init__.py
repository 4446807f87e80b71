"""PSOFT for peftcore: W' = W + B · (R − I) · A, a rotation of W's principal subspace (arXiv 2505.11235)."""

from peftcore import PeftMethod, hookimpl
from peftcore_psoft.adapter import PsoftAdapter
from peftcore_psoft.config import PsoftConfig

__all__ = ["PsoftAdapter", "PsoftConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=PsoftConfig, adapter_cls=PsoftAdapter, paper="2505.11235")
