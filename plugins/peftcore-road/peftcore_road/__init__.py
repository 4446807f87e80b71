"""RoAd for peftcore: rotations of pairs of outputs (arXiv 2409.00119)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_road.adapter import RoadAdapter
from peftcore_road.config import RoadConfig

__all__ = ["RoadAdapter", "RoadConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="road",
        config_cls=RoadConfig,
        adapter_cls=RoadAdapter,
        prefix="road_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2409.00119",
    )
