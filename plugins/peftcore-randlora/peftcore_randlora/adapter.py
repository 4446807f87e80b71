"""RandLoraAdapter: random bases that all layers share, and trained scales of them that add up to full rank."""

from __future__ import annotations

import math

import torch
from torch import nn

from peftcore.adapters.projections import Chain, ScaledDelta
from peftcore.base_layers import BaseLayer
from peftcore_randlora.bases import RandLoraBases
from peftcore_randlora.config import RandLoraConfig


class RandLoraAdapter(ScaledDelta):
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
        self.scaling = config.randlora_alpha / config.r
        short, long = sorted(base.matrix_shape)
        number = math.ceil(short / config.r)
        self.randlora_lambda = nn.Parameter(torch.randn(*base.stack_shape, config.r, number))
        self.randlora_gamma = nn.Parameter(torch.full((*base.stack_shape, number, short), 1 / long))
        if config.init_weights:
            nn.init.zeros_(self.randlora_lambda)
            nn.init.constant_(self.randlora_gamma, 1 / short)

    def chain(self) -> Chain:
        """Return the two sides of the sum, of rank r · n, and s · λ between them."""
        (rows, columns), gamma = self.base.matrix_shape, self.randlora_gamma
        number, short = gamma.shape[-2:]
        # Which column of the Bᵢ meets which row of the scaled A is a matter of naming random numbers; files have it so.
        frozen = self.shared.randlora_B[: max(rows, columns), :number].flatten(1).to(gamma)
        trained = (self.shared.randlora_A[..., :short].to(gamma) * gamma.unsqueeze(-3)).flatten(-3, -2)
        scales = self.scaling * self.randlora_lambda.flatten(-2)
        return Chain(trained, scales, frozen) if rows >= columns else Chain(frozen.mT, scales, trained.mT)
