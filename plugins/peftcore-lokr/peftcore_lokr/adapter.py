"""LoKrAdapter: the Kronecker product of two small matrices, added to a frozen weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftcore.adapters.factored import FactoredDelta
from peftcore.adapters.recomputing import recomputed
from peftcore.base_layers import BaseLayer
from peftcore_lokr.config import LoKrConfig


class LoKrAdapter(FactoredDelta):
    """Low-rank Kronecker product on one layer: Δ = s · C ⊗ D (LoKr in LyCORIS, arXiv 2309.14859).

    With ``out = c · d`` and ``in = a · b``, C is ``[c, a]`` and D ``[d, b, *kernel]``; C is the smaller.
    C is ``lokr_w1``, or ``lokr_w1_a`` ``[c, r]`` times ``lokr_w1_b`` ``[r, a]``.
    D is ``lokr_w2``, or ``lokr_w2_a`` ``[d, r]`` times ``lokr_w2_b`` ``[r, b · kernel]``; with ``use_effective_conv2d``
    and a kernel above 1, it is ``[r, d]``, ``[r, b]`` and a core ``lokr_t2`` ``[r, r, *kernel]``.
    A matrix is split if r is below half its larger side, and C only with ``decompose_both``.
    Of a convolution with groups, ``in`` counts the channels of one group.

    Raises:
        ConfigError: A dropout can't act on the layer.
    """

    lokr_w1: nn.Parameter | None
    lokr_w2: nn.Parameter | None

    def __init__(self, base: BaseLayer, config: LoKrConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.rescales_kept = config.rank_dropout_scale
        (c, d), (a, b) = (divisors(size, config.decompose_factor) for size in self.sizes)
        self.lokr_w1 = self.lokr_w2 = None
        if config.decompose_both and 2 * config.r < max(c, a):
            self.lokr_w1_a, self.lokr_w1_b = self.uniform(c, config.r), self.uniform(config.r, a)
        else:
            self.lokr_w1 = self.uniform(c, a)
        if 2 * config.r < max(d, b):
            self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2 = self.split(d, b)
        else:
            self.lokr_w2 = self.uniform(d, b, *self.kernel)
        if config.init_weights == "lycoris":
            nn.init.zeros_(self.lokr_w2_b if self.lokr_w2 is None else self.lokr_w2)
        elif config.init_weights:
            nn.init.zeros_(self.lokr_w1_a if self.lokr_w1 is None else self.lokr_w1)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return s · C as ``[c, a]`` and D as ``[d, b · kernel]``; with stacked experts, one of each in front."""
        left = self.lokr_w1_a @ self.lokr_w1_b if self.lokr_w1 is None else self.lokr_w1
        right = self.join(self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2) if self.lokr_w2 is None else self.lokr_w2
        return left * self.scaling, right.flatten(1) if self.kernel else right

    def delta_weight(self) -> Tensor:
        """Return s · C ⊗ D."""
        return torch.einsum("...ca,...db->...cdab", *self.matrices()).reshape(self.base.weight_shape)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return s · (C ⊗ D) · x; of a linear layer, as s · C · X · Dᵀ, where X ``[a, b]`` is x."""
        if self.base.kind != "linear":
            return super().delta_forward(x)
        return self.dropped(recomputed(self._act, x))

    def _act(self, x: Tensor) -> Tensor:
        left, right = self.matrices()
        grid = x.reshape(*x.shape[:-1], left.shape[1], right.shape[1])
        return (left @ nn.functional.linear(grid, right)).flatten(-2)


def divisors(size: int, factor: int) -> tuple[int, int]:
    """Return two numbers whose product is a size.

    The first is ``factor`` if that divides the size, and else the largest divisor that is above neither ``factor`` nor
    the second number; -1 sets no such bound.
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    largest = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    first = next(number for number in range(largest, 0, -1) if size % number == 0)
    return first, size // first
