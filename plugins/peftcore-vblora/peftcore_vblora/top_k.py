"""The small form of files: for each piece of a factor, which vectors are chosen and what they weigh.

For logits ``[…, num_vectors]`` called ``x``, a file holds ``x_topk_indices`` ``[…, k]`` and ``x_topk_weights``
``[…, k - 1]``: the weights' sum is 1, so the last one is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peftcore.exceptions import CheckpointError

INDICES, WEIGHTS = "_topk_indices", "_topk_weights"
#: Integers by the number of vectors that they can count.
_INTEGERS = ((2**8, torch.uint8), (2**15, torch.int16), (2**31, torch.int32))


def top_k_of(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the indices, in the smallest integers that files have, and the weights but the last."""
    values, indices = logits.topk(k, -1)
    dtype = next((dtype for limit, dtype in _INTEGERS if logits.shape[-1] < limit), torch.int64)
    return indices.to(dtype), values.softmax(-1)[..., :-1]


def logits_of(indices: Tensor, weights: Tensor, number: int) -> Tensor:
    """Return logits ``[…, number]`` with these top k; all others are minus infinity."""
    last = (1 - weights.sum(-1, keepdim=True)).clamp(min=0)  # rounding may leave less than nothing
    empty = weights.new_full((*indices.shape[:-1], number), float("-inf"))
    return empty.scatter(-1, indices.long(), torch.cat([weights, last], -1).log())


def check_top_k(state: Mapping[str, Tensor], number: int) -> None:
    """Check what a file holds in this form.

    Raises:
        CheckpointError: An index is not below ``number``, or a weight is no share of 1.
    """
    for name, tensor in state.items():
        if name.endswith(INDICES) and not ((tensor >= 0) & (tensor < number)).all():
            raise CheckpointError(f"{name} names vectors that a bank of {number} does not have. The file is damaged.")
        if name.endswith(WEIGHTS) and not ((tensor >= 0) & (tensor <= 1)).all():
            raise CheckpointError(f"{name} holds weights outside 0 to 1. The file is damaged.")
