"""FrodAdapter: what a frozen weight does with each direction of a shared basis, changed."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.dropout import input_dropout
from peftcore.base_layers import BaseLayer
from peftcore_frod.bases import FrodBases
from peftcore_frod.config import FrodConfig


class FrodAdapter(WeightDelta):
    """Full-rank adaptation of one layer, W' = U · (Λ + S) · Vᵀ (arXiv 2512.23485).

    V is shared, and W = U · Λ₀ · Vᵀ with columns of U of length 1. So Δ is U · (Λ − Λ₀ + S) · Vᵀ, and U, which is
    W · V⁻ᵀ · Λ₀⁻¹, need not be held. A direction that W takes to zero has no column of U, and can't be changed.
    The parameters are ``frod_lambda_l`` ``[in]``, Λ's diagonal, and ``frod_lambda_s_values`` ``[n]``, the entries of S.
    A convolution's weight counts as ``[out, in · kernel]``.

    Attributes:
        start: Λ₀'s diagonal, ``[in]``; found again from the frozen weight.

    Raises:
        ConfigError: Dropout can't act on the layer.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS - {"embedding"}
    depends_on_weight = True

    shared: FrodBases
    start: Tensor

    def __init__(self, base: BaseLayer, config: FrodConfig, shared: FrodBases) -> None:
        super().__init__(base, config, shared)
        self.frod_dropout = input_dropout(base, config, "frod_dropout")
        self.category = shared.category(base)
        start = shared.lengths(base)
        self.register_buffer("start", start, persistent=False)
        entries = torch.zeros_like(shared.frod_s_indices[self.category][0], dtype=start.dtype)
        spread = 0.0 if config.init_weights else 0.1
        self.frod_lambda_l = nn.Parameter(start + spread * torch.randn_like(start))
        self.frod_lambda_s_values = nn.Parameter(entries + spread * torch.randn_like(entries))

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer has one weight; stacked experts have several."""
        return super().can_adapt(base) and base.stack == 1

    def delta_weight(self) -> Tensor:
        """Return W · V⁻ᵀ · Λ₀⁻¹ · (Λ − Λ₀ + S) · Vᵀ."""
        basis, inverse = self.shared.frod_V[self.category], self.shared.inverse[self.category]
        weight = self.base.weight().detach().reshape(self.base.matrix_shape).to(basis)
        return (weight @ inverse.mT @ self.turns().to(basis) @ basis.mT).to(self.dtype)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Δ · dropout(x); on a linear layer without forming Δ."""
        x = self.frod_dropout(x)
        if self.base.kind != "linear":
            return super().delta_forward(x)
        basis, inverse = self.shared.frod_V[self.category], self.shared.inverse[self.category]
        turned = x.to(basis) @ basis @ self.turns().to(basis).mT @ inverse
        return self.base.apply(self.base.weight().detach().to(basis), turned).to(x.dtype)

    def turns(self) -> Tensor:
        """Return Λ₀⁻¹ · (Λ − Λ₀ + S) ``[in, in]``: how the frozen weight's directions are scaled and mixed."""
        rows, columns = self.shared.frod_s_indices[self.category]
        change = torch.diag(self.frod_lambda_l - self.start).index_put((rows, columns), self.frod_lambda_s_values)
        is_there = self.start > 1e-5 * self.start.max()
        return change * torch.where(is_there, 1 / self.start, 0).unsqueeze(1)
