"""VB-LoRA for peftcore: W' = W + B · A, made of vectors from one bank (arXiv 2405.15179)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore.targets.usual import ATTENTION_PROJECTIONS
from peftcore_vblora.adapter import VBLoRAAdapter
from peftcore_vblora.bank import VectorBank
from peftcore_vblora.config import VBLoRAConfig
from peftcore_vblora.top_k import check_top_k

__all__ = ["VBLoRAAdapter", "VBLoRAConfig", "VectorBank"]

#: Where VB-LoRA adapts more than the attention projections: it costs little.
_TARGETS = {
    "bart": "q_proj k_proj v_proj out_proj fc1 fc2",
    "deberta-v2": "query_proj key_proj value_proj dense",
    "mt5": "q k v o wi_0 wi_1 wo",
    "opt": "q_proj k_proj v_proj out_proj fc1 fc2",
    "t5": "q k v o wi wo",
}


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="vblora",
        config_cls=VBLoRAConfig,
        adapter_cls=VBLoRAAdapter,
        shared_cls=VectorBank,
        prefix="vblora_",
        paper="2405.15179",
    )


@hookimpl
def default_target_modules(method: str, model_type: str) -> Sequence[str] | None:
    """Name layers of the usual models."""
    if method != "vblora":
        return None
    return _TARGETS[model_type].split() if model_type in _TARGETS else ATTENTION_PROJECTIONS.get(model_type)


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor], config: VBLoRAConfig) -> None:
    """Convert nothing, but refuse a damaged file before its tensors are taken.

    Raises:
        CheckpointError: An index names no vector of the bank, or weights are no numbers.
    """
    if method == "vblora":
        check_top_k(state, config.num_vectors)
