"""DeloraAdapter: a low-rank change whose directions and whose size train apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.starts import uniform, zeros_or_uniform
from peftcore.base_layers import BaseLayer
from peftcore_delora.config import DeloraConfig

#: Shorter vectors are not brought to length 1: B starts at zero. Files need it to be this.
SHORTEST = 1e-4


class DeloraAdapter(LowRankDelta):
    """Decoupled low-rank adaptation of one layer: Δ = (λ / r) · B · Ξ · A · diag(‖W‖) (arXiv 2503.18225).

    Ξ is diagonal, and holds 1 / (‖bᵢ‖ · ‖aᵢ‖) for column i of B and row i of A; ‖W‖ are the lengths of the frozen
    weight's columns. Were these all 1, Δ's Frobenius norm would be λ at most.

    The parameters are ``delora_A`` ``[r, in · kernel]``, ``delora_B`` ``[out, r]`` and ``delora_lambda`` ``[1]``; the
    buffer ``delora_w_norm`` ``[in · kernel]`` is ‖W‖, which files hold too. Stacked experts have one each,
    ``[experts, …]``.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or dropout can't act on the layer.
    """

    delora_w_norm: Tensor

    def __init__(self, base: BaseLayer, config: DeloraConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "r")
        self.r, stack, (out, into) = config.r, base.stack_shape, base.matrix_shape
        self.delora_A = nn.Parameter(uniform(*stack, config.r, into, fan_in=into))
        self.delora_B = nn.Parameter(
            zeros_or_uniform(*stack, out, config.r, zeros=config.init_weights, fan_in=config.r)
        )
        self.delora_lambda = nn.Parameter(torch.full((*stack, 1), float(config.delora_lambda)))
        self.register_buffer("delora_w_norm", _column_lengths(base))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B with directions of length 1, A times ‖W‖, B times λ / r."""
        a, b, factor = self.delora_A, self.delora_B, self.delora_lambda.unsqueeze(-1) / self.r
        a = a / a.norm(dim=-1, keepdim=True).clamp(min=SHORTEST)
        b = b / b.norm(dim=-2, keepdim=True).clamp(min=SHORTEST)
        return a * self.delora_w_norm.unsqueeze(-2), b * factor


def _column_lengths(base: BaseLayer) -> Tensor:
    """Return the lengths of the columns of a weight, seen as a matrix."""
    weight = base.weight().detach().reshape(*base.stack_shape, *base.matrix_shape)
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide).square().sum(-2).sqrt()  # torch's own norm takes twelve times as long along this dimension
