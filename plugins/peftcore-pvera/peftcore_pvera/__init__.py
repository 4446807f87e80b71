"""PVeRA for peftcore: VeRA whose latent features are drawn from a trained distribution (arXiv 2512.07703)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_pvera.adapter import PveraAdapter
from peftcore_pvera.config import PveraConfig
from peftcore_pvera.projections import PveraProjections

__all__ = ["PveraAdapter", "PveraConfig", "PveraProjections"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=PveraConfig,
        adapter_cls=PveraAdapter,
        shared_cls=PveraProjections,
        default_targets={**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"], "dinov2": ["query", "value"]},
        paper="2512.07703",
    )
