"""VeRA for peftcore: W' = W + diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454)."""

from __future__ import annotations

from peftcore.adapters.projections import ProjectionPair
from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_vera.adapter import VeraAdapter
from peftcore_vera.config import VeraConfig

__all__ = ["VeraAdapter", "VeraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="vera",
        config_cls=VeraConfig,
        adapter_cls=VeraAdapter,
        shared_cls=ProjectionPair,
        prefix="vera_",
        default_targets={**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"]},
        paper="2310.11454",
    )
