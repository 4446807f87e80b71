"""FrodAdapter: what a frozen weight does with each direction of a shared basis, changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.singular import wide_matrix
from peftcore.adapters.sparse_product import sparse_product
from peftcore.base_layers import BaseLayer
from peftcore_frod.bases import FrodBases
from peftcore_frod.config import FrodConfig


class FrodAdapter(WeightDelta):
    """Full-rank adaptation of one layer, W' = U · (Λ + S) · Vᵀ (arXiv 2512.23485).

    V is shared, and W = U · Λ₀ · Vᵀ with columns of U of length 1. So U is W · V⁻ᵀ · Λ₀⁻¹, and Δ is W · P with
    P = V⁻ᵀ · Λ₀⁻¹ · (Λ − Λ₀ + S) · Vᵀ. A direction that W takes to zero has no column of U, and can't be changed.
    The parameters are ``frod_lambda_l`` ``[in]``, Λ's diagonal, and ``frod_lambda_s_values`` ``[n]``, the entries of S.
    A convolution's weight counts as ``[out, in · kernel]``.

    Attributes:
        start: Λ₀'s diagonal, ``[in]``; found again from the frozen weight.
        rates: That of Λ₀⁻¹, zero where W takes a direction to zero.

    Raises:
        ConfigError: Dropout can't act on the layer.
    """

    kinds = MATRIX_KINDS - {"embedding"}
    depends_on_weight = True

    shared: FrodBases
    start: Tensor
    rates: Tensor

    def __init__(self, base: BaseLayer, config: FrodConfig, shared: FrodBases) -> None:
        super().__init__(base, config, shared)
        self.category = shared.category(base)
        self.register_buffer("start", shared.lengths(base), persistent=False)
        self.register_buffer("rates", self._rates(), persistent=False)
        start, n = self.start, shared.frod_s_indices[self.category].shape[1]
        spread = 0.0 if config.init_weights else 0.1
        self.frod_lambda_l = nn.Parameter(start + spread * torch.randn_like(start))
        self.frod_lambda_s_values = nn.Parameter(spread * torch.randn(n, dtype=start.dtype, device=start.device))

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer has one weight; stacked experts have several."""
        return super().can_adapt(base) and base.stack == 1

    def follow_basis(self) -> None:
        """Find Λ₀ again, after the basis has changed."""
        self.start.copy_(self.shared.lengths(self.base))
        self.rates.copy_(self._rates())

    def _rates(self) -> Tensor:
        return torch.where(self.start > 1e-5 * self.start.max(), 1 / self.start, 0)

    def delta_weight(self) -> Tensor:
        """Return W · P."""
        turned = self._turned(self.shared.frod_V[self.category].mT)
        return linear(wide_matrix(self.base).to(turned), turned).to(self.dtype)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Δ · dropout(x); on a linear layer without forming Δ, unless there are more tokens than inputs."""
        if not self._acts_on_input(x):
            return super().delta_forward(x)
        change = self._turned(self._hidden(x))
        return (
            linear(change, wide_matrix(self.base).to(change)).reshape(*x.shape[:-1], self.base.out_features).to(x.dtype)
        )

    def changed_input(self, x: Tensor) -> Tensor | None:
        """Return x + P · dropout(x), which W takes to what W + Δ makes of x; None where Δ is to be formed."""
        return self._turned(self._hidden(x), x).reshape(x.shape) if self._acts_on_input(x) else None

    def _acts_on_input(self, x: Tensor) -> bool:
        return self.base.kind == "linear" and x.numel() <= self.shared.frod_V[self.category].numel()

    def _hidden(self, x: Tensor) -> Tensor:
        """Return Vᵀ times dropout(x), ``[in, any]``."""
        basis = self.shared.frod_V[self.category]
        # To put the product in order takes less time than to multiply two transposed matrices.
        return (self.entering(x).reshape(-1, len(basis)).to(basis) @ basis).mT.contiguous()

    def _turned(self, columns: Tensor, x: Tensor | None = None) -> Tensor:
        """Return V⁻ᵀ · Λ₀⁻¹ · (Λ − Λ₀ + S) times columns ``[in, any]``, as rows ``[any, in]``, perhaps added to x."""
        pattern, inverse = self.shared.pattern(self.category), self.shared.inverse[self.category].to(columns)
        start, rates = self.start.to(columns), self.rates.to(columns)
        values = self.frod_lambda_s_values.to(columns) * rates.index_select(0, pattern.indices[0])
        diagonal = (self.frod_lambda_l.to(columns) - start) * rates
        scaled = torch.addcmul(sparse_product(values, columns, pattern), diagonal.unsqueeze(1), columns).mT
        return scaled @ inverse if x is None else torch.addmm(x.reshape(scaled.shape).to(scaled), scaled, inverse)
