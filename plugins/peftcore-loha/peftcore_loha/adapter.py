"""LoHaAdapter: the entrywise product of two low-rank matrices, added to a frozen weight."""

from __future__ import annotations

from torch import Tensor, nn

from peftcore.adapters.factored import FactoredDelta
from peftcore.adapters.recomputing import recomputed
from peftcore.adapters.sizes import check_rank
from peftcore.base_layers import BaseLayer
from peftcore_loha.config import LoHaConfig


class LoHaAdapter(FactoredDelta):
    """Low-rank Hadamard product on one layer: Δ = s · (B₁ · A₁) ∘ (B₂ · A₂), of rank up to r² (arXiv 2108.06098).

    The parameters are ``hada_w1_a`` (B₁) ``[out, r]``, ``hada_w1_b`` (A₁) ``[r, in · kernel]``, and ``hada_w2_a``,
    ``hada_w2_b`` alike; with ``use_effective_conv2d`` and a kernel above 1, ``[r, out]``, ``[r, in]`` and the cores
    ``hada_t1``, ``hada_t2`` ``[r, r, *kernel]`` (proposition 3).
    Of a convolution with groups, ``in`` counts the channels of one group.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or a dropout can't act on the layer.
    """

    def __init__(self, base: BaseLayer, config: LoHaConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "r")
        self.hada_w1_a, self.hada_w1_b, self.hada_t1 = self.split(*self.sizes)
        self.hada_w2_a, self.hada_w2_b, self.hada_t2 = self.split(*self.sizes)
        if config.init_weights:
            nn.init.zeros_(self.hada_w2_b)

    def delta_weight(self) -> Tensor:
        """Return s · (B₁ · A₁) ∘ (B₂ · A₂)."""
        return recomputed(self._product)  # both matrices are as large as the weight

    def _product(self) -> Tensor:
        first = self.join(self.hada_w1_a * self.scaling, self.hada_w1_b, self.hada_t1)
        return first * self.join(self.hada_w2_a, self.hada_w2_b, self.hada_t2)
