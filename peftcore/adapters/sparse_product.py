"""S · X for a sparse S whose entries train, without forming S."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from typing_extensions import Self


class Pattern(NamedTuple):
    """Where the entries of S are, and how they are to be read.

    Attributes:
        indices: Rows and columns of the entries, ``[2, n]``.
        orders: The entries' numbers and their columns, by rows, and the same with rows and columns changed over,
            ``[2, 2, n]``.
        beginnings: Where in the first of these each row begins, and where in the second each column,
            ``[rows + columns]``.
    """

    indices: Tensor
    orders: Tensor
    beginnings: Tensor

    @classmethod
    def of(cls, indices: Tensor, sizes: Sequence[int]) -> Self:
        """Find out how entries are to be read.

        Args:
            indices: Their rows and columns, ``[2, n]``.
            sizes: S's rows and columns.
        """
        orders, beginnings = [], []
        for own, other, size in zip(indices, indices.flip(0), sizes, strict=True):
            order = own.argsort()
            orders.append(torch.stack([order, other[order]]))
            beginnings.append(torch.searchsorted(own[order], torch.arange(size, device=own.device, dtype=own.dtype)))
        return cls(indices, torch.stack(orders).int(), torch.cat(beginnings).int())


class KnownPattern:
    """The pattern of an adapter's entries: found when it is first asked for, and again after their places changed."""

    def __init__(self) -> None:
        self._places: Tensor | None = None
        self._version = 0
        self._pattern: Pattern | None = None

    def __reduce__(self) -> tuple[type[KnownPattern], tuple[()]]:
        return KnownPattern, ()  # a copy's places are other tensors, which do not say how often these have changed

    def of(self, places: Tensor, sizes: Sequence[int]) -> Pattern:
        """Return the pattern.

        Args:
            places: Positions ``[n]`` in S flattened, or rows and columns ``[2, n]``.
            sizes: S's rows and columns.
        """
        counted = not places.is_inference()  # what was made in inference mode does not say whether it has changed
        if self._pattern is None or places is not self._places or not counted or places._version != self._version:
            indices = places if places.dim() == 2 else torch.stack([places // sizes[1], places % sizes[1]])
            self._pattern, self._places = Pattern.of(indices, sizes), places
            self._version = places._version if counted else 0
        return self._pattern


def sparse_product(values: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """Return S · X, computed in float32 or finer.

    Args:
        values: The entries of S, ``[n]``.
        x: ``[columns, any]``.
        pattern: Where they are.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    trains = torch.is_grad_enabled() and (values.requires_grad or x.requires_grad)
    # What autograd does around a function of its own takes as long as a small product.
    multiplied = SparseProduct.apply if trains else SparseProduct.forward
    product: Tensor = multiplied(values.to(wide), x.to(wide), *pattern, False)
    return product.to(x.dtype)


class SparseProduct(torch.autograd.Function):
    """S · X, or Sᵀ · X."""

    @staticmethod
    def forward(
        values: Tensor, x: Tensor, indices: Tensor, orders: Tensor, beginnings: Tensor, transposed: bool
    ) -> Tensor:
        """Return the product.

        Args:
            values: The entries of S, ``[n]``.
            x: As many rows as S, or Sᵀ, has columns.
            indices, orders, beginnings: Of the :class:`Pattern`.
            transposed: Whether S is to be transposed.
        """
        order, others = orders[int(transposed)]
        begin = beginnings[len(x) :] if transposed else beginnings[: len(beginnings) - len(x)]
        weights = values.index_select(0, order)
        product = x.new_empty(x.shape[1], len(begin)).mT if _lies_by_columns(x) else x.new_empty(len(begin), x.shape[1])
        for some in _pieces(x):
            columns = x[:, some].contiguous()
            product[:, some] = embedding_bag(others, columns, begin, mode="sum", per_sample_weights=weights)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep everything but the product."""
        *tensors, ctx.transposed = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the values and of X."""
        values, x, *pattern = ctx.saved_tensors
        of_values = of_x = None
        if ctx.needs_input_grad[0]:
            of_values = _dot(gradient, x, Pattern(*pattern), ctx.transposed)
        if ctx.needs_input_grad[1]:
            of_x = SparseProduct.apply(values, gradient, *pattern, not ctx.transposed)  # type: ignore[no-untyped-call]
        return of_values, of_x, None, None, None, None


def _dot(a: Tensor, b: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
    """Return the entries of A · Bᵀ, or of its transpose, at the places of a pattern."""
    if torch.is_grad_enabled():  # it is going to be differentiated again
        rows, columns = pattern.indices.flip(0) if transposed else pattern.indices
        return (a @ b.mT)[rows, columns]
    order, columns = pattern.orders[int(transposed)]
    rows = pattern.indices[int(transposed)].index_select(0, order).int()
    # What embedding_bag's own gradient is made of: a tenth of the time. Its offsets are used for the maximum only.
    dots, nowhere = a.new_zeros(len(rows)), rows.new_zeros(1)
    for some in _pieces(a):
        of_some = a[:, some].contiguous(), b[:, some].contiguous(), columns, nowhere, rows, 0
        dots += torch.ops.aten._embedding_bag_per_sample_weights_backward(*of_some)
    return torch.empty_like(dots).index_copy_(0, order.long(), dots)


#: Elements of a matrix whose columns are worked on at one time: what a processor's cache holds.
_PIECE = 2**18


def _pieces(x: Tensor) -> list[slice]:
    """Return which columns of a matrix are worked on at one time."""
    rows, columns = x.shape
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(None)]
    width = max(16, _PIECE // max(1, rows))
    return [slice(start, start + width) for start in range(0, columns, width)]


def _lies_by_columns(x: Tensor) -> bool:
    return x.mT.is_contiguous() and not x.is_contiguous()
