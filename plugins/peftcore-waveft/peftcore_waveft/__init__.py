"""WaveFT for peftcore: W' = W + s · D⁻¹(S) with a sparse spectrum of wavelets (arXiv 2505.12532)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_waveft.adapter import WaveFTAdapter
from peftcore_waveft.config import WaveFTConfig
from peftcore_waveft.tuner import WaveFTTuner

__all__ = ["WaveFTAdapter", "WaveFTConfig", "WaveFTTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=WaveFTConfig,
        adapter_cls=WaveFTAdapter,
        tuner_cls=WaveFTTuner,
        default_targets={**ATTENTION_PROJECTIONS, "gpt2": ["mlp.c_proj"], "gpt_bigcode": ["mlp.c_proj"]},
        paper="2505.12532",
    )
