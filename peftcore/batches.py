"""Rows of a batch: picked out of a layer's arguments and joined again in its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftcore.exceptions import MixedBatchError


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the first tensor that a layer is called with."""
    if args and isinstance(args[0], Tensor):  # as nearly always
        return args[0]
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def check_separable(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a cache, whose rows can't be picked out: each group would write into it as if it were all of the batch.

    Raises:
        MixedBatchError: There is one.
    """
    if any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values())):
        raise MixedBatchError(
            "Rows with different adapters on one whole module can't share its cache. Call the model with "
            "use_cache=False, or give all rows one adapter."
        )


def take_rows(values: Any, index: Tensor | None, size: int, batch_dim: int) -> Any:
    """Pick rows out of every tensor in a nested structure that has ``size`` rows; the rest passes unchanged."""
    if index is None:
        return values

    def pick(tensor: Tensor) -> Tensor:
        # A mask of an attention whose batch lies second still has its rows in front.
        for dim in (batch_dim, 0):
            if tensor.dim() > dim and tensor.shape[dim] == size:
                return tensor.index_select(dim, index)
        return tensor

    return _map_tensors(pick, values)


def repeat_row(values: Any, size: int, batch_dim: int) -> Any:
    """Write every tensor in a nested structure that has one row with ``size`` equal ones; the rest passes unchanged."""

    def repeat(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2 or tensor.shape[batch_dim] != 1:
            return tensor  # a single number is no row
        return tensor.expand(*tensor.shape[:batch_dim], size, *tensor.shape[batch_dim + 1 :])

    return _map_tensors(repeat, values)


def join_rows(outputs: Sequence[Any], order: Tensor, sizes: Sequence[int], batch_dim: int) -> Any:
    """Put the groups' results together, nested structures tensor by tensor, and their rows into the batch's order.

    Args:
        outputs: One result per group, all of one structure.
        order: Where each row of the batch stands in the joined groups, ``[batch]``.
        sizes: Rows of each group.
        batch_dim: Where the rows lie; tensors that have theirs in front are seen by their sizes.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        dim = (
            batch_dim
            if all(t.dim() > batch_dim and t.shape[batch_dim] == n for t, n in zip(outputs, sizes, strict=True))
            else 0
        )
        return torch.cat(list(outputs), dim).index_select(dim, order)
    if isinstance(first, Mapping):
        return type(first)({key: join_rows([o[key] for o in outputs], order, sizes, batch_dim) for key in first})  # type: ignore[call-arg]
    if isinstance(first, (list, tuple)):
        items = [join_rows(column, order, sizes, batch_dim) for column in zip(*outputs, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def _map_tensors(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return type(values)({key: _map_tensors(change, value) for key, value in values.items()})  # type: ignore[call-arg]
    if isinstance(values, (list, tuple)):
        items = [_map_tensors(change, value) for value in values]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    return values
