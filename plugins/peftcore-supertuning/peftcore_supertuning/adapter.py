"""SupertuningAdapter: the largest entries of a weight train, each by a number that is added to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.dropout import drops, input_dropout
from peftcore.adapters.entries import Entries
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.sparse import SparseDelta
from peftcore.adapters.starts import uniform, zeros_or_uniform
from peftcore.base_layers import BaseLayer
from peftcore_supertuning.config import SupertuningConfig


class SupertuningAdapter(SparseDelta):
    """Super-Tuning of one layer, Δ = S, or with a rank Supra, Δ = S + s · B · A (arXiv 2607.09287).

    S is zero but for the n = ⌊(1 − sparsity) · size⌋ entries of the flattened frozen weight that are largest in
    magnitude; experts that are stacked count as one weight.
    The parameters are ``supertuning_values`` ``[n]`` and, with a rank, ``supertuning_lora_A.weight`` ``[r, in ·
    kernel]`` and ``supertuning_lora_B.weight`` ``[out, r]``, of which stacked experts have one pair each,
    ``[experts, …]``.
    ``supertuning_indices`` ``[n]``, int32, holds the entries' places, and does not train.
    Dropout acts on A's input, and so not on an embedding, whose input are token ids.

    Raises:
        ConfigError: No entry is left to train, or more than int32 can count; the rank is above both sizes of the
            weight, or dropout can't act on the layer.
    """

    values_name, places_name = "supertuning_values", "supertuning_indices"
    shown = ("count", "r", "scaling")

    def __init__(self, base: BaseLayer, config: SupertuningConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.count = _count(base, config, base.weight_shape.numel())
        zeros, saved = config.init_weights, config.save_precomputed_indices
        self.hold_entries(self.count, lambda: _extreme(base, config, self.count), zeros=zeros, saved=saved)
        self.r = config.r
        if config.r is None:
            return
        check_rank(base, config, "r")
        self.scaling = 2.0 if config.lora_alpha is None else config.lora_alpha / config.r
        self.lora_dropout = input_dropout(base, config, "lora_dropout")
        (out, into), stack, r = base.matrix_shape, base.stack_shape, config.r
        self.supertuning_lora_A = nn.ParameterDict({"weight": uniform(*stack, r, into, fan_in=into)})
        b = zeros_or_uniform(*stack, out, r, zeros=zeros, fan_in=r)
        self.supertuning_lora_B = nn.ParameterDict({"weight": b})

    def low_rank(self) -> Tensor:
        """Return s · B · A, with a rank."""
        product: Tensor = self.supertuning_lora_B["weight"] @ (self.supertuning_lora_A["weight"] * self.scaling)
        return product.reshape(self.base.weight_shape)

    def delta_weight(self) -> Tensor:
        """Return S, or S + s · B · A."""
        return self.sparse_weight() + self.low_rank() if self.r else self.sparse_weight()

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return S · x + s · B · A · dropout(x)."""
        output = super().delta_forward(x)
        return output + self.base.apply(self.low_rank(), self.lora_dropout(x)) if self.r else output

    def acts_whole(self) -> bool:
        """Return whether the entries are many or there is a rank, and nothing is dropped."""
        return not drops(self.lora_dropout) if self.r else super().acts_whole()

    def entries(self) -> Entries | None:
        """Return the places, or None with a rank: then every entry changes."""
        return None if self.r else super().entries()


def _extreme(base: BaseLayer, config: SupertuningConfig, count: int) -> Tensor:
    """Return the positions of the entries of a weight that are the largest in magnitude, or the smallest."""
    return base.weight().detach().abs().flatten().topk(count, largest=config.select_top).indices


def _count(base: BaseLayer, config: SupertuningConfig, size: int) -> int:
    """Return how many entries train."""
    count = int(size * (1 - config.sparsity))
    if not count:
        config.refuse(
            "sparsity",
            f"{config.sparsity} leaves none of the {size} entries of a {base} to train: choose a smaller one, or "
            "exclude the layer",
        )
    if size > torch.iinfo(torch.int32).max:
        config.refuse("target_modules", f"a {base} has {size} entries, more than files can count: exclude it")
    return count
