"""SSF for peftcore: a factor and a shift for each output of a layer, y' = γ ∘ y + β (arXiv 2210.08823)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftcore import LayerConfig, PeftMethod, hookimpl, option
from peftcore.adapters.scale import OutputScale
from peftcore.base_layers import BaseLayer

__all__ = ["SSFAdapter", "SSFConfig"]

#: What version 0.1 called the tensors, and what they are called now.
_RENAMED = {"gamma": "ssf_factors", "beta": "ssf_shift"}


class SSFConfig(LayerConfig, method="ssf"):
    """Scaling and shifting of features (SSF, arXiv 2210.08823)."""

    spread: float = option(0.02, "Standard deviation of γ around 1 and of β around 0 at the start.", at_least=0)


class SSFAdapter(OutputScale):
    """SSF on one layer: ``ssf_factors`` and ``ssf_shift``, both ``[out]``."""

    def __init__(self, base: BaseLayer, config: SSFConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.ssf_factors = nn.Parameter(1 + config.spread * torch.randn(base.out_features))
        self.ssf_shift = nn.Parameter(config.spread * torch.randn(base.out_features))

    def output_factors(self) -> Tensor:
        """Return γ."""
        return self.ssf_factors

    def shift(self) -> Tensor:
        """Return β."""
        return self.ssf_shift


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=SSFConfig,
        adapter_cls=SSFAdapter,
        default_targets={"vit": ["query", "key", "value", "dense"]},
        paper="2210.08823",
    )


@hookimpl
def convert_checkpoint(method: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Read the files of version 0.1."""
    if method != "ssf" or not any(key.rpartition(".")[2] in _RENAMED for key in state):
        return None
    return {_renamed(key): tensor for key, tensor in state.items()}


def _renamed(key: str) -> str:
    path, _, name = key.rpartition(".")
    return f"{path}.{_RENAMED.get(name, name)}"
