"""PVeRA for peftcore: VeRA whose latent features are drawn from a trained distribution (arXiv 2512.07703)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_pvera.adapter import PveraAdapter
from peftcore_pvera.config import PveraConfig
from peftcore_pvera.projections import PveraProjections

__all__ = ["PveraAdapter", "PveraConfig", "PveraProjections"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="pvera",
        config_cls=PveraConfig,
        adapter_cls=PveraAdapter,
        shared_cls=PveraProjections,
        prefix="pvera_",
        default_targets={**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"], "dinov2": ["query", "value"]},
        paper="2512.07703",
    )
