"""AdaMSS for peftcore: clusters of a weight's outputs, each with its own small subspace (NeurIPS 2025)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_adamss.adapter import AdamssAdapter
from peftcore_adamss.config import AdamssConfig
from peftcore_adamss.tuner import AdamssTuner

__all__ = ["AdamssAdapter", "AdamssConfig", "AdamssTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=AdamssConfig,
        adapter_cls=AdamssAdapter,
        tuner_cls=AdamssTuner,
        default_targets={**ATTENTION_PROJECTIONS, "vit": ["query", "value"]},
        paper="https://openreview.net/forum?id=8ZdWmpYxT0",
    )
