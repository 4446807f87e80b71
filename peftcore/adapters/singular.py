"""A frozen weight as a matrix, and its singular value decomposition, for the methods that start from either."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from peftcore.base_layers.base import BaseLayer


class SingularParts(NamedTuple):
    """Factors of a matrix ``[…, out, in]``, U · diag(S) · V, or of its best approximation of rank k.

    Attributes:
        u: U ``[…, out, k]``, orthonormal columns.
        s: S ``[…, k]``, the largest first.
        v: V ``[…, k, in]``, orthonormal rows.
    """

    u: Tensor
    s: Tensor
    v: Tensor

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return A = √S · V ``[…, k, in]`` and B = U · √S ``[…, out, k]``, whose product B · A is the matrix."""
        roots = self.s.sqrt()
        return roots.unsqueeze(-1) * self.v, self.u * roots.unsqueeze(-2)


def wide_matrix(base: BaseLayer) -> Tensor:
    """Return a frozen weight as a matrix ``[out, in · kernel]``, in float32 or finer.

    Stacked experts have ``[experts]`` in front. Perhaps it is a view, so never write to it.
    """
    weight = base.weight().detach()
    return weight.reshape(*base.stack_shape, *base.matrix_shape).to(torch.promote_types(weight.dtype, torch.float32))


def decomposed(
    base: BaseLayer, rank: int, decompose: Callable[[Tensor], SingularParts], dtype: torch.dtype = torch.float32
) -> SingularParts:
    """Return the leading singular parts of a frozen weight, in float32 or finer.

    On the meta device nothing is computed: a file or a later start is going to bring what is needed.

    Args:
        base: The layer; stacked experts are decomposed one by one.
        rank: How many parts; at most as many as there are.
        decompose: Does it. It is given :func:`wide_matrix` in the dtype, or in a finer one if that of the weight is.
        dtype: In which it is done. On a device that has no such numbers, it is done on the CPU.
    """
    matrix = wide_matrix(base)
    out, into = base.matrix_shape
    if matrix.is_meta or torch.empty(0).is_meta:
        shapes = (out, rank), (rank,), (rank, into)
        return SingularParts(*(matrix.new_empty(*base.stack_shape, *shape, device="meta") for shape in shapes))
    finer = torch.promote_types(matrix.dtype, dtype)
    # Apple's GPUs have no float64.
    device = "cpu" if matrix.is_mps and finer == torch.float64 else matrix.device
    u, s, v = decompose(matrix.to(device, finer))
    parts = u[..., :rank], s[..., :rank], v[..., :rank, :]
    return SingularParts(*(part.to(matrix.device, matrix.dtype) for part in parts))


def exact_parts(matrix: Tensor) -> SingularParts:
    """Return all singular parts of a matrix ``[…, out, in]``, by its singular value decomposition."""
    return SingularParts(*torch.linalg.svd(matrix, full_matrices=False))


def squared_parts(matrix: Tensor, rank: int | None = None) -> SingularParts:
    """Return singular parts of a matrix, by the eigenvectors of the smaller one of M·Mᵀ and Mᵀ·M.

    This takes less than half the time of :func:`exact_parts`.
    What squaring costs in precision is lost in singular values that are small beside the largest, and in their vectors;
    those of a value of 0 are 0.

    Args:
        matrix: M ``[…, out, in]``.
        rank: How many parts, the largest; None for all.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        v, s, u = squared_parts(matrix.mT, rank)
        return SingularParts(u.mT, s, v.mT)
    vectors = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors.flip(-1)
    u = vectors if rank is None else vectors[..., :rank]
    along = u.mT @ matrix
    s = torch.linalg.vector_norm(along, dim=-1)
    return SingularParts(u, s, along / s.clamp(min=torch.finfo(s.dtype).tiny).unsqueeze(-1))


def careful_parts(matrix: Tensor) -> SingularParts:
    """Return all singular parts of a matrix ``[…, out, in]``, by :func:`squared_parts` unless they can't tell them.

    In float64, squaring costs nothing that float32 could hold, unless singular values are next to zero: then their
    vectors have no direction left, and :func:`exact_parts` has to find it.

    Args:
        matrix: In float64.
    """
    parts = squared_parts(matrix)
    return exact_parts(matrix) if (parts.s[..., -1] <= 1e-6 * parts.s[..., 0]).any() else parts
