"""Super-Tuning for peftcore: W' = W + S with S sparse, and Supra, the same plus B · A (arXiv 2607.09287)."""

from peftcore import PeftMethod, hookimpl
from peftcore_supertuning.adapter import SupertuningAdapter
from peftcore_supertuning.config import SupertuningConfig

__all__ = ["SupertuningAdapter", "SupertuningConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=SupertuningConfig, adapter_cls=SupertuningAdapter, paper="2607.09287")
