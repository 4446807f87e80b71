"""C3A for peftcore: W' = W + Δ with circulant blocks (arXiv 2407.19342)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_c3a.adapter import C3AAdapter
from peftcore_c3a.config import C3AConfig

__all__ = ["C3AAdapter", "C3AConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=C3AConfig,
        adapter_cls=C3AAdapter,
        default_targets={**ATTENTION_PROJECTIONS, "gpt2": ["mlp.c_proj"], "gpt_bigcode": ["mlp.c_proj"]},
        paper="2407.19342",
    )
