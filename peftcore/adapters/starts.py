"""How parameters start."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform(*shape: int, fan_in: int | None = None) -> Tensor:
    """Return a tensor uniform within ±1/√fan-in, as torch's own layers start: Kaiming's with a = √5.

    Args:
        *shape: Its shape.
        fan_in: The size of all dimensions but the first, if None.
    """
    tensor = torch.empty(shape)
    if tensor.is_meta:
        return tensor  # torch draws no numbers there, and takes longer than all else here to do so
    bound = 1 / math.sqrt(math.prod(shape[1:]) if fan_in is None else fan_in)
    return tensor.uniform_(-bound, bound)
