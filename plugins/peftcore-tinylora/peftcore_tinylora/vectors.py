"""TinyLoraVectors: the vectors that an adapter trains, each for a group of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcore.adapters.parts import whole_layer
from peftcore.base_layers import BaseLayer
from peftcore_tinylora.config import TinyLoraConfig


class TinyLoraVectors(nn.Module):
    """The trained vectors of an adapter.

    Layers that follow each other share one: groups are of one size, but the last also has what is left over.

    Attributes:
        tinylora_v: One vector ``[u]`` per group.
    """

    def __init__(self, config: TinyLoraConfig, bases: Sequence[BaseLayer]) -> None:
        super().__init__()
        self._numbers = {base: number for number, base in enumerate(bases)}
        groups = max(1, round(len(bases) * (1 - config.weight_tying)))
        self._size = len(bases) // groups
        bound = 0.0 if config.init_weights is True else config.init_v_bound
        self.tinylora_v = nn.ParameterList(torch.empty(config.u).uniform_(-bound, bound) for _ in range(groups))

    def number(self, base: BaseLayer) -> int:
        """Return which of the adapter's layers this is, counted from 0; parts of a fused layer are that layer."""
        return self._numbers[whole_layer(base)]

    def vector(self, number: int) -> Tensor:
        """Return the vector of the group that a layer belongs to."""
        return self.tinylora_v[min(number // self._size, len(self.tinylora_v) - 1)]
