"""MissAdapter: one matrix, shared by all shards of the input, added to a frozen weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.sizes import check_divisor
from peftcore.adapters.starts import zeros_or_uniform
from peftcore.base_layers import BaseLayer
from peftcore_miss.config import MissConfig


class MissAdapter(WeightDelta):
    """Matrix shard sharing on one layer (arXiv 2409.15371); the weight counts as a matrix ``[out, in · kernel]``.

    The parameter ``miss_block`` is D:

    * ``[r, out]``: column j of Δ is row j mod r of D, so that Δ · x is D applied to the sum of the input's shards;
    * ``[r, mini_r]`` with ``"mini"``: the same, where output i takes column i mod mini_r;
    * ``[out / r, r, r]`` with ``"bat"``: each r × r block W_pq of the frozen weight becomes W_pq + W_pq · D_p + D_p.

    Stacked experts have one each, ``[experts, …]``.

    Raises:
        ConfigError: The sizes do not fit the layer, or dropout can't act on it.
    """

    kinds = MATRIX_KINDS

    def __init__(self, base: BaseLayer, config: MissConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.r = config.r
        # W_pq · D_p follows the frozen weight; nothing else does.
        self.depends_on_weight = config.init_weights == "bat"  # type: ignore[misc]
        shape, zeros = _shape(base, config), config.init_weights is not False
        self.miss_block = nn.Parameter(zeros_or_uniform(*base.stack_shape, *shape, zeros=zeros, fan_in=shape[-1]))

    def delta_weight(self) -> Tensor:
        """Return Δ."""
        if self.depends_on_weight:
            return self._blocks()
        out, into = self.base.matrix_shape
        *stack, shard, period = self.miss_block.shape
        # Whole copies side by side, of which the last may be cut: nothing is looked up entry by entry. They are copies
        # of what lies row by row in memory.
        rows = self.miss_block.mT.contiguous().unsqueeze(-3).expand(*stack, out // period, period, shard)
        columns = rows.flatten(-3, -2).unsqueeze(-2).expand(*stack, out, -(-into // shard), shard)
        return columns.flatten(-2)[..., :into]

    def _blocks(self) -> Tensor:
        """Return W_pq · D_p + D_p, put together."""
        out, into = self.base.matrix_shape
        stack, r, shared = self.base.stack_shape, self.r, self.miss_block
        # Row by row of W, the pieces of length r are multiplied: so the weight stays as it lies in memory.
        pieces = self.base.weight().to(shared).reshape(*stack, out // r, into, r)
        products = (pieces @ shared).reshape(*stack, out // r, r, into // r, r)
        return (products + shared.unsqueeze(-2)).reshape(self.base.weight_shape)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Δ · dropout(x); on a linear layer, D applied to the sum of the input's shards."""
        if self.depends_on_weight or self.base.kind != "linear":
            return super().delta_forward(x)
        x = self.entering(x)
        rest = -x.shape[-1] % self.r
        padded = nn.functional.pad(x, (0, rest)) if rest else x  # either step would copy where nothing is to be done
        features = torch.unflatten(padded, -1, (-1, self.r)).sum(-2) @ self.miss_block
        copies = self.base.out_features // features.shape[-1]
        return features if copies == 1 else features.tile(copies)


def _shape(base: BaseLayer, config: MissConfig) -> tuple[int, ...]:
    """Return the shape of D on a layer, or of each expert's.

    Raises:
        ConfigError: The sizes do not fit.
    """
    out, into = base.matrix_shape
    if config.init_weights == "bat":
        check_divisor(base, config, "r")
        return out // config.r, config.r, config.r
    if config.r > into:
        config.refuse("r", f"{config.r} is above the {into} inputs of a {base}: choose a smaller one, or exclude it")
    period = config.mini_r if config.init_weights == "mini" else out
    if out % period:
        config.refuse("mini_r", f"{config.mini_r} does not divide the {out} outputs of a {base}: choose a divisor")
    return config.r, period
