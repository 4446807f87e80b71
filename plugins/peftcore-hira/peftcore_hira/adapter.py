"""HiraAdapter: a frozen weight, multiplied entry by entry with a low-rank matrix and added to itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.starts import uniform
from peftcore.base_layers import BaseLayer
from peftcore_hira.config import HiraConfig


class HiraAdapter(WeightDelta):
    """Hadamard adaptation of one layer: Δ = W ∘ (B · A), of high rank where W is (openreview TwJrTz9cRS).

    The parameters are ``hira_A`` ``[r, in]`` and ``hira_B`` ``[out, r]``.
    On a convolution they are ``[r, in / groups, *kernel]`` and ``[out, r, 1 …]``; stacked experts have a pair each,
    ``[experts, r, in]`` and ``[experts, out, r]``; on an embedding they are called ``hira_embedding_A``
    ``[r, vocabulary]`` and ``hira_embedding_B`` ``[dim, r]``.
    W is always the frozen weight, whatever else is merged.
    Dropout acts on the layer's input, and so not on an embedding, whose input are token ids.

    Attributes:
        r: The rank.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or dropout can't act on the layer.
    """

    kinds = MATRIX_KINDS
    depends_on_weight = True

    def __init__(self, base: BaseLayer, config: HiraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "r")
        self.r = config.r
        self._prefix = "hira_embedding_" if base.kind == "embedding" else "hira_"
        for name, factor in zip("AB", _factors(base, config), strict=True):
            self.register_parameter(self._prefix + name, nn.Parameter(factor))

    def delta_weight(self) -> Tensor:
        """Return W ∘ (B · A)."""
        a, b = (self.get_parameter(self._prefix + name) for name in "AB")
        flat = self.base.kind.startswith("conv")
        product = b.flatten(1) @ a.flatten(1) if flat else b @ a
        return self.base.weight().to(a.dtype) * product.reshape(self.base.weight_shape)


def _factors(base: BaseLayer, config: HiraConfig) -> tuple[Tensor, Tensor]:
    """Return A and B as they start: one of them zero, or for tests none."""
    *stack, out, fan_in = base.weight_shape if base.kind == "parameter" else base.matrix_shape
    kernel = base.weight_shape[2:] if base.kind.startswith("conv") else ()
    init, shape = config.init_weights, (*stack, config.r, *(base.weight_shape[1:] if kernel else (fan_in,)))
    a, b = torch.empty(shape), torch.empty(*stack, out, config.r, *[1] * len(kernel))
    if base.kind == "embedding":
        return a.normal_() if init is False else a.zero_(), b.normal_()
    if not init:
        return a.normal_(), b.normal_()
    return a.normal_(std=1 / config.r) if init == "gaussian" else uniform(*shape, fan_in=fan_in), b.zero_()
