"""MiSS for peftcore: W' = W + [D D … D]ᵀ, a matrix that all shards of the input share (arXiv 2409.15371)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_miss.adapter import MissAdapter
from peftcore_miss.config import MissConfig

__all__ = ["MissAdapter", "MissConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="miss",
        config_cls=MissConfig,
        adapter_cls=MissAdapter,
        prefix="miss_",
        default_targets=ATTENTION_PROJECTIONS,
        paper="2409.15371",
    )


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Rename the tensors of files from the time when the method was called Bone."""
    if method != "miss" or not any(key.endswith(".bone_block") for key in state):
        return None
    return {key.replace(".bone_block", ".miss_block"): tensor for key, tensor in state.items()}
