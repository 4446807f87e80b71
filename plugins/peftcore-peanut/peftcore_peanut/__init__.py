"""PEANuT for peftcore: W' = W + s · B · net(A · W), a small network of the weight (arXiv 2410.01870)."""

from peftcore import PeftMethod, hookimpl
from peftcore_peanut.adapter import PeanutAdapter
from peftcore_peanut.config import PeanutConfig

__all__ = ["PeanutAdapter", "PeanutConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=PeanutConfig, adapter_cls=PeanutAdapter, paper="2410.01870")
