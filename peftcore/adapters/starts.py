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


def zeros_or_uniform(*shape: int, zeros: bool, fan_in: int | None = None) -> Tensor:
    """Return zeros, by which most changes start as none, or the same as :func:`uniform`, as tests want them.

    Args:
        *shape: The tensor's shape.
        zeros: Which of the two.
        fan_in: As :func:`uniform` has it.
    """
    return torch.zeros(shape) if zeros else uniform(*shape, fan_in=fan_in)
