"""GraloraAdapter: a grid of low-rank blocks, added to a frozen weight."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.sizes import check_divisor, check_rank
from peftcore.adapters.starts import uniform, zeros_or_uniform
from peftcore.base_layers import BaseLayer
from peftcore_gralora.config import GraloraConfig


class GraloraAdapter(WeightDelta):
    """Granular low-rank adaptation of one layer (arXiv 2505.20355); its weight counts as ``[out, in · kernel]``.

    Δ is cut into k × k blocks. Block (p, g), which takes piece g of the input to piece p of the output, has rank
    q = r / k: its factors are columns p · q … of ``gralora_A[g]`` and rows g · q … of ``gralora_B[p]``.
    The parameters are ``gralora_A`` ``[k, in · kernel / k, r]`` and ``gralora_B`` ``[k, r, out / k]``; with
    ``hybrid_r``, ``gralora_A_general.weight`` ``[hybrid_r, in · kernel]`` and ``gralora_B_general.weight``
    ``[out, hybrid_r]``, whose product is added. Stacked experts have one each, ``[experts, …]``.

    Raises:
        ConfigError: The blocks do not fit the layer, a rank is above both sizes, or dropout can't act on the layer.
    """

    kinds = MATRIX_KINDS
    shown = "blocks", "scaling"

    def __init__(self, base: BaseLayer, config: GraloraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_divisor(base, config, "gralora_k")
        check_rank(base, config, "r")
        check_rank(base, config, "hybrid_r")
        self.blocks, self.scaling = config.gralora_k, config.alpha / (config.r + config.hybrid_r)
        stack, (out, into), k = base.stack_shape, base.matrix_shape, config.gralora_k
        last = functools.partial(zeros_or_uniform, *stack, zeros=config.init_weights)

        self.gralora_A = nn.Parameter(uniform(*stack, k, into // k, config.r, fan_in=into // k))
        self.gralora_B = nn.Parameter(last(k, config.r, out // k, fan_in=config.r))
        self.hybrid = config.hybrid_r > 0
        if self.hybrid:
            r = config.hybrid_r
            self.gralora_A_general = nn.ParameterDict({"weight": uniform(*stack, r, into, fan_in=into)})
            self.gralora_B_general = nn.ParameterDict({"weight": last(out, r, fan_in=r)})

    def delta_weight(self) -> Tensor:
        """Return the blocks side by side, and the low-rank change of the whole weight."""
        k, a, b = self.blocks, self.gralora_A, self.gralora_B
        rank = a.shape[-1] // k
        grid = a.reshape(*a.shape[:-1], k, rank), b.reshape(*b.shape[:-2], k, rank, b.shape[-1])
        blocks = torch.einsum("...gipq,...pgqo->...pogi", *grid)
        delta = blocks.reshape(*self.base.stack_shape, *self.base.matrix_shape)
        if self.hybrid:
            a, b = self._general()
            delta = delta + b @ a
        return delta * self.scaling

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Δ · dropout(x); on a linear layer, by way of the factors."""
        if self.base.kind != "linear":
            return super().delta_forward(x)
        x, k, rank = self.entering(x), self.blocks, self.gralora_A.shape[-1]
        pieces = x.reshape(*x.shape[:-1], k, x.shape[-1] // k)
        into_rank = torch.einsum("...gi,gir->...gr", pieces, self.gralora_A)
        # Of what each piece of the input has become, a share goes to each piece of the output.
        shares = into_rank.reshape(*x.shape[:-1], k, k, rank // k).transpose(-3, -2).reshape(*x.shape[:-1], k, rank)
        output = torch.einsum("...pr,pro->...po", shares, self.gralora_B).flatten(-2)
        if self.hybrid:
            a, b = self._general()
            output = output + x @ a.mT @ b.mT
        return output * self.scaling

    def _general(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the factors of the low-rank change of the whole weight."""
        return self.get_parameter("gralora_A_general.weight"), self.get_parameter("gralora_B_general.weight")
