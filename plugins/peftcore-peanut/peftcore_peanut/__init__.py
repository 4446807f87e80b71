"""PEANuT for peftcore: W' = W + s · B · net(A · W), a small network of the weight (arXiv 2410.01870)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_peanut.adapter import PeanutAdapter
from peftcore_peanut.config import PeanutConfig

__all__ = ["PeanutAdapter", "PeanutConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="peanut",
        config_cls=PeanutConfig,
        adapter_cls=PeanutAdapter,
        prefix="peanut_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2410.01870",
    )
