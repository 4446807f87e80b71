"""SupertuningAdapter: the largest entries of a weight train, each by a number that is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.dropout import drops, input_dropout, with_part_dropped
from peftcore.adapters.sizes import check_rank
from peftcore.adapters.sparse import check_places, scattered
from peftcore.adapters.starts import uniform
from peftcore.base_layers import BaseLayer
from peftcore_supertuning.config import SupertuningConfig


class SupertuningAdapter(WeightDelta):
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

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS

    supertuning_indices: Tensor

    def __init__(self, base: BaseLayer, config: SupertuningConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        count = _count(base, config, base.weight_shape.numel())
        self.supertuning_values = nn.Parameter(torch.zeros(count) if config.init_weights else torch.randn(count))
        keep = config.save_precomputed_indices
        self.register_buffer("supertuning_indices", self._choose(config, count), persistent=keep)
        self.lora_dropout: nn.Module = nn.Identity()
        if config.r is None:
            return
        check_rank(base, config, "r")
        self.scaling = 2.0 if config.lora_alpha is None else config.lora_alpha / config.r
        self.lora_dropout = input_dropout(base, config, "lora_dropout")
        (out, into), stack, r = base.matrix_shape, base.stack_shape, config.r
        b = torch.zeros(*stack, out, r) if config.init_weights else uniform(*stack, out, r, fan_in=r)
        self.supertuning_lora_A = nn.ParameterDict({"weight": uniform(*stack, r, into, fan_in=into)})
        self.supertuning_lora_B = nn.ParameterDict({"weight": b})

    def _choose(self, config: SupertuningConfig, count: int) -> Tensor:
        """Return the entries' places, by magnitude."""
        weight = self.base.weight()
        if weight.is_meta or (config.save_precomputed_indices and torch.empty(0).is_meta):
            return torch.empty(count, dtype=torch.int32)  # a file is going to bring them
        sizes = weight.detach().abs().flatten()
        return sizes.topk(count, largest=config.select_top).indices.to(torch.int32)

    def low_rank(self) -> Tensor:
        """Return s · B · A, with a rank."""
        product: Tensor = self.supertuning_lora_B["weight"] @ (self.supertuning_lora_A["weight"] * self.scaling)
        return product.reshape(self.base.weight_shape)

    def delta_weight(self) -> Tensor:
        """Return S, or S + s · B · A."""
        sparse = scattered(self.supertuning_values, self.supertuning_indices.long(), self.base.weight_shape)
        return sparse + self.low_rank() if "supertuning_lora_A" in self._modules else sparse

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return S · x + s · B · A · dropout(x)."""
        return with_part_dropped(self.base, super().delta_forward(x), x, self.lora_dropout, self.low_rank)

    def acts_whole(self) -> bool:
        """Return whether nothing is dropped."""
        return not drops(self.lora_dropout)

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Check that the entries that a file names are in the weight."""
        if (indices := state.get("supertuning_indices")) is not None:
            check_places("supertuning_indices", indices, [self.base.weight_shape.numel()], self.base)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, entries={len(self.supertuning_values)}"


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
