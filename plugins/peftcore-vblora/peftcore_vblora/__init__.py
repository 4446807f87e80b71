"""VB-LoRA for peftcore: W' = W + B · A, made of vectors from one bank (arXiv 2405.15179)."""

from collections.abc import Mapping

from torch import Tensor

from peftcore import PeftMethod, hookimpl
from peftcore.targets.usual import ALL_PROJECTIONS, ATTENTION_PROJECTIONS
from peftcore_vblora.adapter import VBLoRAAdapter
from peftcore_vblora.bank import VectorBank
from peftcore_vblora.config import VBLoRAConfig
from peftcore_vblora.top_k import check_top_k

__all__ = ["VBLoRAAdapter", "VBLoRAConfig", "VectorBank"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=VBLoRAConfig,
        adapter_cls=VBLoRAAdapter,
        shared_cls=VectorBank,
        default_targets={**ATTENTION_PROJECTIONS, **ALL_PROJECTIONS},
        paper="2405.15179",
    )


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor], config: VBLoRAConfig) -> None:
    """Convert nothing, but refuse a damaged file before its tensors are taken.

    Raises:
        CheckpointError: An index names no vector of the bank, or weights are no numbers.
    """
    if method == "vblora":
        check_top_k(state, config.num_vectors)
