"""FourierFT for peftcore: W' = W + α · Re F⁻¹(S) with a sparse spectrum (arXiv 2405.03003)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_fourierft.adapter import FourierFTAdapter
from peftcore_fourierft.config import FourierFTConfig

__all__ = ["FourierFTAdapter", "FourierFTConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=FourierFTConfig,
        adapter_cls=FourierFTAdapter,
        default_targets={**ATTENTION_PROJECTIONS, "gpt2": ["mlp.c_proj"], "gpt_bigcode": ["mlp.c_proj"]},
        paper="2405.03003",
    )
