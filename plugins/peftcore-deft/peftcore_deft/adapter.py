"""DeftAdapter: a subspace of a layer's outputs, taken out of its weight and filled anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.dropout import input_dropout, with_part_dropped
from peftcore.adapters.formed_deltas import FINE
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.thin_products import is_watched
from peftcore.base_layers import BaseLayer
from peftcore_deft.config import DeftConfig


class DeftAdapter(LowRankDelta):
    """Subspace removal and injection on one layer, Δ = Q · (s · R − Fᵀ · W) (arXiv 2509.22793, 2406.05641).

    W is the frozen weight seen as ``[out, in · kernel]``; Q and F ``[out, r]`` follow from P.
    The parameters are ``deft_P`` ``[out, r]`` and, but for PaRa, ``deft_R`` ``[r, in · kernel]``, with r no larger than
    out. Stacked experts have one pair each, ``[experts, …]``.
    Dropout acts on R's input, and so not on an embedding, whose input are token ids.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or dropout can't act on the layer.
    """

    depends_on_weight = True
    shown = ("r", "scaling", "orthonormal")

    def __init__(self, base: BaseLayer, config: DeftConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "r")
        out = base.matrix_shape[0]
        self.r = min(config.r, out)
        self.scaling = 1.0 if config.alpha is None else config.alpha / config.r
        self.orthonormal = config.decomposition_method == "qr"
        self.deft_dropout = input_dropout(base, config, "deft_dropout")
        self.deft_P = nn.Parameter(torch.empty(*base.stack_shape, out, self.r).normal_(std=0.02))
        self.deft_R: nn.Parameter | None = None
        if not config.para:
            start = self._removed(self.subspace()[1]).detach() / self.scaling
            self.deft_R = nn.Parameter(start if config.init_weights else start.normal_(std=0.02 * config.init_scale))

    def subspace(self) -> tuple[Tensor, Tensor]:
        """Return Q and F, both ``[out, r]``."""
        p = self.deft_P
        if not self.orthonormal:
            return p, p.relu()
        q = torch.linalg.qr(p.to(torch.promote_types(p.dtype, torch.float32)))[0].to(p.dtype)
        return q, q

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return s · R − Fᵀ · W and Q."""
        q, f = self.subspace()
        removed = self._removed(f)
        return -removed if self.deft_R is None else self.deft_R * self.scaling - removed, q

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Q · (s · R · dropout(x) − Fᵀ · W · x)."""
        output = super().delta_forward(x)
        if self.deft_R is None:
            return output
        return with_part_dropped(self.base, output, x, self.deft_dropout, self.injected)

    def delta_beside(self, frozen: Tensor, x: Tensor) -> Tensor:
        """Return the same by way of W · x, which the layer has made already, while that is smaller than W."""
        matrix = self.base.plain_matrix()
        fine = frozen.dtype == x.dtype and x.dtype in FINE
        if is_watched() or matrix is None or self.base.kept or not fine or frozen.numel() > matrix[0].numel():
            return self.delta_forward(x)
        (q, f), (_, bias), r = self.subspace(), matrix, self.deft_R
        put_back = q.new_zeros(()) if bias is None else bias @ f
        if r is not None:
            put_back = nn.functional.linear(self.deft_dropout(x), r * self.scaling) + put_back
        return nn.functional.linear(put_back - frozen @ f, q)

    def injected(self) -> Tensor:
        """Return s · Q · R, ``[out, in · kernel]``, which PaRa does not have."""
        assert self.deft_R is not None
        return self.subspace()[0] @ (self.deft_R * self.scaling)

    def _removed(self, f: Tensor) -> Tensor:
        """Return Fᵀ · W, ``[r, in · kernel]``."""
        return f.mT @ self.base.weight().to(f).reshape(*self.base.stack_shape, *self.base.matrix_shape)
