"""How factors start, with the distributions that HF PEFT has.

Every start but False makes B · A zero, so that the adapted model begins as the frozen one.
All tensors are made in torch's default dtype and on its default device; who calls moves them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftcore.adapters.starts import uniform
from peftcore_lora.config import Init

Shape = tuple[int, ...]


def factors(init: Init, a: Shape | None, b: Shape, rank: int) -> tuple[Tensor | None, Tensor]:
    """Return A and B for a layer that multiplies its input; without an A, B alone makes Δ.

    Args:
        init: True: A uniform, B zero; "gaussian": A normal with standard deviation 1/r, B zero; "orthogonal": both away
            from zero, see :func:`_orthogonal`; False: both uniform, so Δ is not zero.
        a: A's shape, or None.
        b: B's shape.
        rank: r, even for "orthogonal".
    """
    if a is None:
        return None, last(init, b)
    if init == "orthogonal":
        return _orthogonal(a, b, rank)
    return torch.empty(a).normal_(std=1 / rank) if init == "gaussian" else uniform(*a), last(init, b)


def embedding_factors(init: Init, a: Shape | None, b: Shape) -> tuple[Tensor | None, Tensor]:
    """Return A and B for a layer that looks its input up: A zero, or normal if ``init`` is False; B standard normal.

    Without an A, B alone makes Δ and starts as :func:`last` says.
    """
    if a is None:
        return None, last(init, b)
    return torch.empty(a).normal_() if init is False else torch.zeros(a), torch.empty(b).normal_()


def last(init: Init, shape: Shape, fan_in: int | None = None) -> Tensor:
    """Return what ends a product, or a bias: uniform if ``init`` is False, else zero."""
    if init is False:
        return uniform(*shape, fan_in=fan_in)
    tensor = torch.empty(shape)
    return tensor if tensor.is_meta else tensor.zero_()


def _orthogonal(a: Shape, b: Shape, rank: int) -> tuple[Tensor, Tensor]:
    """Return matrices A and B that use one half each of a random orthonormal basis of the r dimensions."""
    half = rank // 2
    basis = torch.linalg.qr(torch.randn(rank, rank)).Q
    return basis[:, :half] @ torch.randn(half, a[1]) / 10, torch.randn(b[0], half) @ basis[:, half:].T / 10
