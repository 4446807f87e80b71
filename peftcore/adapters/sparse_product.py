"""S · X for a sparse S whose entries train, without forming S."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def order_of(indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return how the entries of S are to be read, row by row and column by column.

    Args:
        indices: Rows and columns of the entries, ``[2, n]``.
        size: S's rows, and columns.

    Returns:
        ``[2, 2, n]``: the entries' numbers and their columns, by rows, and the same with rows and columns changed over.
        ``[2, size]``: where in these each row, or column, begins.
    """
    orders, beginnings = [], []
    for own, other in (indices, indices.flip(0)):
        order = own.argsort()
        orders.append(torch.stack([order, other[order]]))
        beginnings.append(torch.searchsorted(own[order], torch.arange(size, device=own.device, dtype=own.dtype)))
    return torch.stack(orders), torch.stack(beginnings)


class SparseProduct(torch.autograd.Function):
    """S · X, or Sᵀ · X."""

    @staticmethod
    def forward(
        values: Tensor, x: Tensor, indices: Tensor, orders: Tensor, beginnings: Tensor, transposed: bool
    ) -> Tensor:
        """Return the product.

        Args:
            values: The entries of S, ``[n]``.
            x: ``[size, any]``.
            indices: Their rows and columns, ``[2, n]``.
            orders, beginnings: What :func:`order_of` returned for these.
            transposed: Whether S is to be transposed.
        """
        if not x.shape[1]:
            return torch.zeros_like(x)
        (order, others), begin = orders[int(transposed)], beginnings[int(transposed)]
        return embedding_bag(others, x.contiguous(), begin, mode="sum", per_sample_weights=values[order])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep everything but the product."""
        *tensors, ctx.transposed = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the values and of X."""
        values, x, indices, orders, beginnings = ctx.saved_tensors
        own, other = indices.flip(0) if ctx.transposed else indices
        of_values = of_x = None
        if ctx.needs_input_grad[0]:
            of_values = _dot(gradient, x, own, other)
        if ctx.needs_input_grad[1]:
            turned = not ctx.transposed
            of_x = SparseProduct.apply(values, gradient, indices, orders, beginnings, turned)  # type: ignore[no-untyped-call]
        return of_values, of_x, None, None, None, None


def _dot(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of A · Bᵀ at some rows and columns."""
    if torch.is_grad_enabled():  # it is going to be differentiated again
        return (a @ b.mT)[rows, columns]
    # What embedding_bag's own gradient is made of: a tenth of the time. Its offsets are used for the maximum only.
    nowhere = rows.new_zeros(1)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, b.contiguous(), columns, nowhere, rows, 0)
