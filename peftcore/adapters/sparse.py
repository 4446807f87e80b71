"""Matrices that are zero but for some entries: put together, and their entries' places checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from peftcore.base_layers.base import BaseLayer
from peftcore.exceptions import CheckpointError


def scattered(values: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor that is zero but for some entries; values at one place add up.

    Args:
        values: The entries' values, ``[..., n]``.
        places: Their positions in the flattened tensor, ``[n]``.
        shape: The tensor's shape, but for the first dimensions, which are those of the values.
    """
    nothing = values.new_zeros(*values.shape[:-1], math.prod(shape))
    return nothing.index_add(-1, places, values).reshape(*values.shape[:-1], *shape)


def check_places(name: str, places: Tensor, sizes: Sequence[int], base: BaseLayer) -> None:
    """Check that places which a file brings lie in a layer's weight.

    Args:
        name: What the file calls them.
        places: Whole numbers from 0: ``[n]``, or for each dimension of the weight ``[dimensions, n]``.
        sizes: What the numbers, or the numbers of each dimension, have to be below.
        base: The layer.

    Raises:
        CheckpointError: They don't, or are no integers.
    """
    integers = not (places.is_floating_point() or places.is_complex() or places.dtype == torch.bool)
    rows = places.reshape(len(sizes), -1) if integers and places.numel() % len(sizes) == 0 else None
    if rows is None or any(((row < 0) | (row >= size)).any() for row, size in zip(rows, sizes, strict=True)):
        raise CheckpointError(
            f"{name} must be integers that name entries of the weight of a {base}, {' × '.join(map(str, sizes))}, and "
            "these do not: the file is damaged, or another model's."
        )
