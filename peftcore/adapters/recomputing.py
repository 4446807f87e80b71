"""Results that are computed again for the gradient, where what leads to them takes more memory than it takes time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """Return a function's result, for whose gradient nothing that it made on the way is kept: it is computed again.

    Args:
        function: Must give the same for the same arguments, so it must not draw random numbers.
        *args: What is kept.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
