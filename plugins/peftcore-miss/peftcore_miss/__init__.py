"""MiSS for peftcore: W' = W + [D D … D]ᵀ, a matrix that all shards of the input share (arXiv 2409.15371)."""

from collections.abc import Mapping

from torch import Tensor

from peftcore import PeftMethod, hookimpl
from peftcore_miss.adapter import MissAdapter
from peftcore_miss.config import MissConfig

__all__ = ["MissAdapter", "MissConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=MissConfig, adapter_cls=MissAdapter, paper="2409.15371")


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Rename the tensors of files from the time when the method was called Bone."""
    if method != "miss" or not any(key.endswith(".bone_block") for key in state):
        return None
    return {key.replace(".bone_block", ".miss_block"): tensor for key, tensor in state.items()}
