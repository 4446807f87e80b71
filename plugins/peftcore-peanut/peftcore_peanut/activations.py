"""Activations by the names that transformers gives them; those with parameters of their own are left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional


def _laplace(x: Tensor) -> Tensor:
    """Return the Laplace function with the mean √½ and the deviation √(1 / 4π) (Mega, arXiv 2209.10655)."""
    return 0.5 * (1 + torch.erf((x - math.sqrt(0.5)) * math.sqrt(2 * math.pi)))


_gelu_tanh: Callable[[Tensor], Tensor] = partial(functional.gelu, approximate="tanh")

#: Those that torch has by the same name.
_TORCH_S = ["gelu", "hardswish", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "tanh"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(functional, name) for name in _TORCH_S},
    **dict.fromkeys(("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"), _gelu_tanh),
    "gelu_10": lambda x: functional.gelu(x).clamp(-10, 10),
    "gelu_python": functional.gelu,
    "laplace": _laplace,
    "linear": lambda x: x,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: functional.relu(x).square(),
    "sqrtsoftplus": lambda x: functional.softplus(x).sqrt(),
    "swish": functional.silu,
}
