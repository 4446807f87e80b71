"""VeRA for peftcore: W' = W + diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454)."""

from peftcore import PeftMethod, hookimpl
from peftcore.adapters.projections import ProjectionPair
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_vera.adapter import VeraAdapter
from peftcore_vera.config import VeraConfig

__all__ = ["VeraAdapter", "VeraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=VeraConfig,
        adapter_cls=VeraAdapter,
        shared_cls=ProjectionPair,
        default_targets={**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"]},
        paper="2310.11454",
    )
