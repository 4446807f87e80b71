"""RandLoraAdapter: random bases that all layers share, and trained scales of them that add up to full rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftcore.adapters.dropout import input_dropout
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.recomputing import recomputed
from peftcore.base_layers import BaseLayer
from peftcore_randlora.bases import RandLoraBases
from peftcore_randlora.config import RandLoraConfig


class RandLoraAdapter(LowRankDelta):
    """Adaptation of one layer by random bases: Δ = s · Σᵢ Bᵢ · diag(λᵢ) · A · diag(γᵢ) (arXiv 2502.00987).

    With D the larger and d the smaller size of the weight ``[out, in · kernel]``, Δ is ``[D, d]``, transposed where
    the outputs are the fewer, and n = ⌈d / r⌉.
    The parameters are ``randlora_lambda`` ``[r, n]`` and ``randlora_gamma`` ``[n, d]``; where experts are stacked, each
    has its own, ``[experts, …]``.
    Of a convolution with groups, ``in`` counts the channels of one group.

    Attributes:
        scaling: s = randlora_alpha / r; may be set.

    Raises:
        ConfigError: Dropout can't act on the layer.
    """

    shared: RandLoraBases

    def __init__(self, base: BaseLayer, config: RandLoraConfig, shared: RandLoraBases) -> None:
        super().__init__(base, config, shared)
        self.randlora_dropout = input_dropout(base, config, "randlora_dropout")
        self.scaling = config.randlora_alpha / config.r
        short, long = sorted(base.matrix_shape)
        number = math.ceil(short / config.r)
        self.randlora_lambda = nn.Parameter(torch.randn(*base.stack_shape, config.r, number))
        self.randlora_gamma = nn.Parameter(torch.full((*base.stack_shape, number, short), 1 / long))
        if config.init_weights:
            nn.init.zeros_(self.randlora_lambda)
            nn.init.constant_(self.randlora_gamma, 1 / short)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the two sides of the sum, of rank r · n: the Bᵢ, and A as λ and γ scale it."""
        rows, columns = self.base.matrix_shape
        frozen = self.shared.randlora_B[: max(rows, columns), : self.randlora_gamma.shape[-2]]
        # Which column of the Bᵢ meets which row of the scaled A is a matter of naming random numbers; files have it so.
        frozen = frozen.flatten(1).to(self.randlora_gamma)
        # For the gradient, autograd would keep matrices as large as the weight; they are computed again.
        trained = recomputed(self._scaled)
        return (trained, frozen) if rows >= columns else (frozen.mT, trained.mT)

    def _scaled(self) -> Tensor:
        """Return s · diag(λᵢ) · A · diag(γᵢ) of all i, ``[r · n, d]``."""
        a = self.shared.randlora_A[..., : self.randlora_gamma.shape[-1]].to(self.randlora_gamma)
        scales = (self.scaling * self.randlora_lambda).unsqueeze(-1)
        return (scales * a * self.randlora_gamma.unsqueeze(-3)).flatten(-3, -2)

    def entering(self, x: Tensor) -> Tensor:
        """Return the input after dropout."""
        return self.randlora_dropout(x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scaling={self.scaling:g}"
