"""AdaLoraAdapter: a delta in the form of a singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftcore.adapters.dropout import input_dropout
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_rank
from peftcore.base_layers import BaseLayer
from peftcore_adalora.config import AdaLoraConfig

#: Standard deviation of A and B at the start.
_SPREAD = 0.02
#: Stands beside the rank in the scaling's denominator, as in the authors' code, whose files have to mean the same here.
_EPSILON = 1e-5


class AdaLoraAdapter(LowRankDelta):
    """Adaptive low-rank adaptation of one layer: Δ = s · B · diag(E) · A (arXiv 2303.10512, where it is P · Λ · Q).

    The parameters are ``lora_A`` ``[r, in]``, ``lora_B`` ``[out, r]`` and ``lora_E`` ``[r, 1]``; on a convolution,
    ``in`` counts the entries of a kernel.
    Dropout acts on the layer's input, and so not on an embedding, whose input are token ids.

    Attributes:
        scaling: s = lora_alpha / init_r, whatever rank is left.
        kept: The ranks that training has left, once that is decided: files hold these alone; None for all.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or dropout can't act on the layer.
    """

    kept: Tensor | None

    def __init__(self, base: BaseLayer, config: AdaLoraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "init_r")
        out, fan_in = base.matrix_shape
        rank = config.init_r if config.kept_rank is None else config.kept_rank
        self.kept = None
        self.scaling = config.lora_alpha / (math.sqrt(config.init_r) if config.use_rslora else config.init_r + _EPSILON)
        self.lora_dropout = input_dropout(base, config, "lora_dropout")
        spread = _SPREAD if config.init_lora_weights else 1.0
        self.lora_A = nn.Parameter(torch.empty(rank, fan_in).normal_(std=spread))
        self.lora_B = nn.Parameter(torch.empty(out, rank).normal_(std=spread))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1) if config.init_lora_weights else torch.randn(rank, 1))

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer has one weight; stacked experts have several, which one budget can't weigh."""
        return super().can_adapt(base) and base.stack == 1

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return s · diag(E) · A and B."""
        return self.lora_A * self.lora_E * self.scaling, self.lora_B

    def entering(self, x: Tensor) -> Tensor:
        """Return the input after dropout."""
        return self.lora_dropout(x)

    # ------------------------------------------------------------------------------------------- its ranks

    def orthogonality_gaps(self) -> list[Tensor]:
        """Return how far the rows of A and the columns of B are from orthonormal: two Frobenius norms."""
        one = torch.eye(len(self.lora_E), device=self.lora_E.device, dtype=self.lora_E.dtype)
        return [torch.linalg.matrix_norm(factor @ factor.T - one) for factor in (self.lora_A, self.lora_B.T)]

    @torch.no_grad()
    def zero_all_but(self, kept: Tensor) -> None:
        """Set the entries of E to zero that are not kept.

        Args:
            kept: ``[r]``, bool.
        """
        self.lora_E.masked_fill_(~kept.to(self.lora_E.device)[:, None], 0.0)

    def saved_module(self) -> nn.Module:
        """Return this module, or one with the ranks that are left."""
        if self.kept is None:
            return self
        saved, rows = nn.Module(), self.kept.nonzero().squeeze(1).to(self.lora_E.device)
        saved.lora_A = nn.Parameter(self.lora_A.detach()[rows])
        saved.lora_B = nn.Parameter(self.lora_B.detach()[:, rows])
        saved.lora_E = nn.Parameter(self.lora_E.detach()[rows])
        return saved

    @torch.no_grad()
    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take tensors with the ranks that are left into those with all ranks, which are still training."""
        if self.kept is None:
            return
        rows = self.kept.nonzero().squeeze(1).to(self.lora_E.device)
        for name, value in state.items():
            parameter = self.get_parameter(name)
            parameter.index_copy_(1 if name == "lora_B" else 0, rows, value.to(parameter))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={len(self.lora_E)}, scaling={self.scaling:g}"
