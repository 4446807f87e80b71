"""FRoD for peftcore: W' = U · (Λ + S) · Vᵀ with a basis V that layers share and a sparse S (arXiv 2512.23485)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_frod.adapter import FrodAdapter
from peftcore_frod.bases import FrodBases
from peftcore_frod.config import FrodConfig
from peftcore_frod.tuner import FrodTuner

__all__ = ["FrodAdapter", "FrodBases", "FrodConfig", "FrodTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=FrodConfig,
        adapter_cls=FrodAdapter,
        tuner_cls=FrodTuner,
        shared_cls=FrodBases,
        default_targets={**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"], "vit": ["query", "value"]},
        paper="2512.23485",
    )
