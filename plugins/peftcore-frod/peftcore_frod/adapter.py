"""FrodAdapter: what a frozen weight does with each direction of a shared basis, changed."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.dropout import input_dropout
from peftcore.adapters.singular import wide_matrix
from peftcore.adapters.sparse_product import SparseProduct
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
        directions: U ``[out, in · kernel]``, if the config says that it is to be held, else None.

    Raises:
        ConfigError: Dropout can't act on the layer.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS - {"embedding"}
    depends_on_weight = True

    shared: FrodBases
    start: Tensor
    directions: Tensor | None

    def __init__(self, base: BaseLayer, config: FrodConfig, shared: FrodBases) -> None:
        super().__init__(base, config, shared)
        self.frod_dropout = input_dropout(base, config, "frod_dropout")
        self.category = shared.category(base)
        self.register_buffer("start", shared.lengths(base), persistent=False)
        self.register_buffer("directions", self._directions() if config.hold_directions else None, persistent=False)
        start, n = self.start, shared.frod_s_indices[self.category].shape[1]
        spread = 0.0 if config.init_weights else 0.1
        self.frod_lambda_l = nn.Parameter(start + spread * torch.randn_like(start))
        self.frod_lambda_s_values = nn.Parameter(spread * torch.randn(n, dtype=start.dtype, device=start.device))

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer has one weight; stacked experts have several."""
        return super().can_adapt(base) and base.stack == 1

    def follow_basis(self) -> None:
        """Find Λ₀ and U again, after the basis has changed."""
        self.start.copy_(self.shared.lengths(self.base))
        if self.directions is not None:
            self.directions.copy_(self._directions())

    def delta_weight(self) -> Tensor:
        """Return U · (Λ − Λ₀ + S) · Vᵀ."""
        return self.raised(self.mixed(self.shared.frod_V[self.category].mT)).to(self.dtype)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Δ · dropout(x); on a linear layer without forming Δ, unless there are more tokens than inputs."""
        x, basis = self.frod_dropout(x), self.shared.frod_V[self.category]
        if self.base.kind != "linear" or x.numel() > basis.numel():
            return self.base.apply(self.canonical_delta(), x)
        hidden = basis.mT @ x.reshape(-1, len(basis)).to(basis).mT
        return self.raised(self.mixed(hidden)).mT.reshape(*x.shape[:-1], self.base.out_features).to(x.dtype)

    def mixed(self, hidden: Tensor) -> Tensor:
        """Return (Λ − Λ₀ + S) times some columns, ``[in, any]`` both."""
        shared, wide = self.shared, hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        where = (part[self.category] for part in (shared.frod_s_indices, shared.orders, shared.beginnings))
        turned = SparseProduct.apply(self.frod_lambda_s_values.to(wide), wide, *where, False)  # type: ignore[no-untyped-call]
        return torch.addcmul(turned, (self.frod_lambda_l - self.start).to(wide).unsqueeze(1), wide).to(hidden.dtype)

    def raised(self, columns: Tensor) -> Tensor:
        """Return U times some columns ``[in, any]``."""
        return self._through_weight(columns) if self.directions is None else self.directions.to(columns) @ columns

    def _through_weight(self, columns: Tensor) -> Tensor:
        """Return U, as W · V⁻ᵀ · Λ₀⁻¹, times some columns."""
        is_there = self.start > 1e-5 * self.start.max()
        scaled = torch.where(is_there, 1 / self.start, 0).to(columns).unsqueeze(1) * columns
        return wide_matrix(self.base).to(columns) @ (self.shared.inverse[self.category].mT @ scaled)

    def _directions(self) -> Tensor:
        return self._through_weight(torch.eye(len(self.start), dtype=self.start.dtype, device=self.start.device))
