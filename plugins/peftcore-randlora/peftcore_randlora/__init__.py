"""RandLoRA for peftcore: W' = W + s · Σᵢ Bᵢ · diag(λᵢ) · A · diag(γᵢ) (arXiv 2502.00987)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from peftcore import PeftMethod, hookimpl
from peftcore.exceptions import CheckpointError
from peftcore_randlora.adapter import RandLoraAdapter
from peftcore_randlora.bases import RandLoraBases
from peftcore_randlora.config import RandLoraConfig

__all__ = ["RandLoraAdapter", "RandLoraBases", "RandLoraConfig"]

_BASES = ("base_model.randlora_A", "base_model.randlora_B")


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=RandLoraConfig, adapter_cls=RandLoraAdapter, shared_cls=RandLoraBases, paper="2502.00987"
    )


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Leave out the copies of the bases that HF PEFT writes for each layer.

    Raises:
        CheckpointError: A copy differs from what the layers share.
    """
    if method != "randlora":
        return None
    copies = {key for key in state if key.endswith((".randlora_A", ".randlora_B"))}.difference(_BASES)
    for key in sorted(copies):
        base = next(base for base in _BASES if base[-1] == key[-1])
        if base not in state or not torch.equal(state[key], state[base]):
            raise CheckpointError(f"{key} is no copy of {base}, which all layers share. The file is damaged.")
    return {key: value for key, value in state.items() if key not in copies} if copies else None
