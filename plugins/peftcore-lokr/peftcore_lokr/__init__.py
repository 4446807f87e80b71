"""LoKr for peftcore: W' = W + s · C ⊗ D (arXiv 2309.14859)."""

from peftcore import PeftMethod, hookimpl
from peftcore_lokr.adapter import LoKrAdapter
from peftcore_lokr.config import LoKrConfig

__all__ = ["LoKrAdapter", "LoKrConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=LoKrConfig, adapter_cls=LoKrAdapter, paper="2309.14859")
