"""UniLoraVector: the one vector from which all factors of an adapter come, and which entry goes where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from peftcore.adapters.parts import own_rows, whole_layer
from peftcore.base_layers import BaseLayer
from peftcore_unilora.config import UniLoraConfig


class UniLoraVector(nn.Module):
    """The trained vector that an adapter's layers share.

    Attributes:
        unilora_theta_d: ``[theta_d_length]``.
        counts: How many entries of factors come from each entry of it, ``[theta_d_length]``.
    """

    def __init__(self, config: UniLoraConfig, bases: Sequence[BaseLayer]) -> None:
        super().__init__()
        bound, theta = config.init_theta_d_bound, torch.empty(config.theta_d_length)
        self.unilora_theta_d = nn.Parameter(theta.uniform_(-bound, bound) if config.init_weights else theta.normal_())
        sizes = [config.r * base.stack * sum(base.matrix_shape) for base in bases]
        indices = _assigned(sum(sizes), config.theta_d_length, config.proj_seed)
        self.counts = torch.bincount(indices, minlength=config.theta_d_length)
        self._parts = dict(zip(bases, torch.split(indices, sizes), strict=True))

    def indices(self, base: BaseLayer, r: int) -> tuple[Tensor, Tensor]:
        """Return which entries of the vector a layer's A ``[r, in · kernel]`` and B ``[out, r]`` hold, on the CPU.

        Stacked experts have ``[experts]`` in front. Parts of a fused layer have its A, and their rows of its B.
        """
        whole = whole_layer(base)
        out, into = whole.matrix_shape
        a, b = torch.split(self._parts[whole], [whole.stack * r * into, whole.stack * out * r])
        return a.reshape(*whole.stack_shape, r, into), own_rows(base, b.reshape(*whole.stack_shape, out, r))


def _assigned(number: int, length: int, seed: int) -> Tensor:
    """Return a random index below ``length`` for each of a number of entries, all indices equally often, up to one.

    The numbers are those of HF PEFT, which are NumPy's: files hold the vector alone, so both have to agree.
    """
    generator = np.random.default_rng(seed)
    once_more = generator.choice(length, number % length, replace=False)
    indices = np.concatenate([np.repeat(np.arange(length), number // length), once_more])
    generator.shuffle(indices)
    return torch.from_numpy(indices).long()
