"""SHiRA for peftcore: W' = W + S, with S sparse (arXiv 2406.13175)."""

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_shira.adapter import ShiraAdapter
from peftcore_shira.config import MaskFunction, ShiraConfig

__all__ = ["MaskFunction", "ShiraAdapter", "ShiraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=ShiraConfig,
        adapter_cls=ShiraAdapter,
        default_targets={**ATTENTION_PROJECTIONS, "phi": ["q_proj", "v_proj"]},
        paper="2406.13175",
    )
