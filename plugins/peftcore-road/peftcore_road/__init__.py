"""RoAd for peftcore: rotations of pairs of outputs (arXiv 2409.00119)."""

from peftcore import PeftMethod, hookimpl
from peftcore_road.adapter import RoadAdapter
from peftcore_road.config import RoadConfig

__all__ = ["RoadAdapter", "RoadConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=RoadConfig, adapter_cls=RoadAdapter, paper="2409.00119")
