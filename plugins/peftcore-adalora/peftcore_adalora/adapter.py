"""AdaLoraAdapter: a delta in the form of a singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_rank
from peftcore.allocation import AllocatedAdapter, Importance
from peftcore.base_layers import BaseLayer
from peftcore_adalora.config import AdaLoraConfig

#: Standard deviation of A and B at the start.
_SPREAD = 0.02
#: Stands beside the rank in the scaling's denominator, as in the authors' code, whose files have to mean the same here.
_EPSILON = 1e-5
#: The dimension of each parameter that counts ranks.
_RANKS = {"lora_A": 0, "lora_B": 1, "lora_E": 0}


class AdaLoraAdapter(AllocatedAdapter, LowRankDelta):
    """Adaptive low-rank adaptation of one layer: Δ = s · B · diag(E) · A (arXiv 2303.10512, where it is P · Λ · Q).

    The parameters are ``lora_A`` ``[r, in]``, ``lora_B`` ``[out, r]`` and ``lora_E`` ``[r, 1]``; on a convolution,
    ``in`` counts the entries of a kernel.
    Dropout acts on the layer's input, and so not on an embedding, whose input are token ids.

    Attributes:
        r: How many ranks there are.
        scaling: s = lora_alpha / init_r, whatever rank is left.
        kept: The ranks that training has left, ``[r]``, once that is decided: files hold these alone; None for all.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or dropout can't act on the layer.
    """

    kept: Tensor | None = None

    def __init__(self, base: BaseLayer, config: AdaLoraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "init_r")
        out, fan_in = base.matrix_shape
        self.r = rank = config.init_r if config.kept_rank is None else config.kept_rank
        self.scaling = config.lora_alpha / (math.sqrt(config.init_r) if config.use_rslora else config.init_r + _EPSILON)
        spread = _SPREAD if config.init_lora_weights else 1.0
        self.lora_A = nn.Parameter(torch.empty(rank, fan_in).normal_(std=spread))
        self.lora_B = nn.Parameter(torch.empty(out, rank).normal_(std=spread))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1) if config.init_lora_weights else torch.randn(rank, 1))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return s · diag(E) · A and B."""
        return self.lora_A * self.lora_E * self.scaling, self.lora_B

    # ------------------------------------------------------------------------------------------- its ranks

    def orthogonality_gaps(self) -> list[Tensor]:
        """Return how far the rows of A and the columns of B are from orthonormal: two Frobenius norms."""
        one = torch.eye(self.r, device=self.lora_E.device, dtype=self.lora_E.dtype)
        return [torch.linalg.matrix_norm(factor @ factor.T - one) for factor in (self.lora_A, self.lora_B.T)]

    def scores(self, importance: Importance) -> Tensor:
        """Return each rank's importance, ``[r]``: its entry of E's, and the means over its row of A and column of B."""
        return importance.of("lora_E").squeeze(1) + importance.of("lora_A").mean(1) + importance.of("lora_B").mean(0)

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """Set the entries of E to zero that are not kept, ``[r]``."""
        self.lora_E.masked_fill_(~kept.to(self.lora_E.device)[:, None], 0.0)

    def saved_module(self) -> nn.Module:
        """Return this module, or one with the ranks that are left."""
        if self.kept is None:
            return self
        saved, ranks = nn.Module(), self._ranks_left(self.kept)
        for name, dim in _RANKS.items():
            left = self.get_parameter(name).detach().index_select(dim, ranks)
            saved.register_parameter(name, nn.Parameter(left))
        return saved

    @torch.no_grad()
    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take tensors with the ranks that are left into those with all ranks, which are still training."""
        if self.kept is not None:
            for name, value in state.items():
                parameter = self.get_parameter(name)
                parameter.index_copy_(_RANKS[name], self._ranks_left(self.kept), value.to(parameter))

    def _ranks_left(self, kept: Tensor) -> Tensor:
        return kept.nonzero().squeeze(1).to(self.lora_E.device)
