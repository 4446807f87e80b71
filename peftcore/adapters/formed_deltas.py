"""y = x·(W + Δ)ᵀ + b: a frozen linear layer together with deltas that are matrices of the weight's size anyway.

Step by step, such a Δ costs a second product as large as the frozen layer's, and a second one for the input's gradient.
To add it to the weight first takes one pass over the weight, which does not grow with the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.thin_products import autocast_dtype
from peftcore.base_layers.base import BaseLayer

#: With fewer rows, a second product costs no more than the sum does.
_ROWS = 16
#: A coarser weight would lose what Δ adds in its last places.
FINE = (torch.float32, torch.float64)


def run_with_formed_deltas(base: BaseLayer, deltas: Sequence[WeightDelta], x: Any) -> Tensor | None:
    """Run a frozen linear layer together with the deltas on it; None if that has to be done step by step.

    Args:
        base: The layer's view.
        deltas: What acts on it.
        x: The layer's input, ``[..., in]``.
    """
    if not isinstance(x, Tensor) or not all(delta.acts_whole() for delta in deltas):
        return None
    # A compiler would have to ask for the number of rows; autocast would round the sum.
    if torch.compiler.is_compiling() or x.numel() < _ROWS * x.shape[-1] or autocast_dtype(x.device) is not None:
        return None
    matrix = base.plain_matrix()
    if matrix is None or x.dtype not in FINE:
        return None
    weight, bias = matrix
    if weight.dtype != x.dtype or any(delta.dtype != x.dtype for delta in deltas):
        return None
    if any(delta.entering(x) is not x for delta in deltas):
        return None
    for delta in deltas:
        weight = weight + delta.canonical_delta()
        if (change := delta.delta_bias()) is not None:
            bias = change if bias is None else bias + change
    return linear(x, weight, bias)
