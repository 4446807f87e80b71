"""VeRA for peftcore: W' = W + diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454)."""

from __future__ import annotations

from collections.abc import Sequence

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_vera.adapter import VeraAdapter
from peftcore_vera.config import VeraConfig
from peftcore_vera.projections import VeraProjections

__all__ = ["VeraAdapter", "VeraConfig", "VeraProjections"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="vera",
        config_cls=VeraConfig,
        adapter_cls=VeraAdapter,
        shared_cls=VeraProjections,
        prefix="vera_",
        paper="2310.11454",
    )


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name the attention projections of the usual models."""
    if method != "vera":
        return None
    return ["q_proj", "v_proj"] if model_type == "phi" else ATTENTION_PROJECTIONS.get(model_type)
