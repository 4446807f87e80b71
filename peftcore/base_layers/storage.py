"""Writing into stored weights: in place, and in no more memory than it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from peftcore.exceptions import MergeError


def write_(stored: Tensor, value: Tensor) -> None:
    """Copy a value into a stored tensor (or a view of one), in the stored dtype; the tensor object stays.

    Raises:
        MergeError: The shapes differ; nothing was written.
    """
    if stored.shape != value.shape:
        raise MergeError(f"A tensor of shape {list(value.shape)} does not fit the stored one, {list(stored.shape)}.")
    if stored.is_inference() == torch.is_inference_mode_enabled() and not torch.is_grad_enabled():
        stored.copy_(value)  # as is nearly always, where many small tensors are written
        return
    with writing(stored):
        stored.copy_(value)


@contextlib.contextmanager
def writing(stored: Tensor) -> Iterator[None]:
    """Let a stored tensor be changed in place."""
    # Weights made under torch.inference_mode() may be changed under it only; leaving it turns gradients on again.
    with torch.inference_mode(stored.is_inference()), torch.no_grad():
        yield


#: Elements of a weight that are brought to a wider dtype at one time. What a processor's cache holds is not written to
#: memory and read back; and however large the weight, that is all the memory that it takes.
_PIECE = 2**16
_PIECE_ELSEWHERE = 2**24


def pieces(weight: Tensor, *others: Tensor, wide: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
    """Cut a weight, and tensors with as many rows, into pieces of some rows; into one if the weight is wide already."""
    piece = _PIECE if weight.device.type == "cpu" else _PIECE_ELSEWHERE
    rows = len(weight) if weight.dtype == wide else piece * len(weight) // max(1, weight.numel())
    return zip(*(torch.split(tensor, max(1, rows)) for tensor in (weight, *others)), strict=True)


def is_transposed(weight: Tensor) -> bool:
    """Whether a canonical weight is a view of one that lies transposed in memory."""
    return weight.dim() > 1 and weight.mT.is_contiguous() and not weight.is_contiguous()


def can_take(stored: Tensor, new: Tensor) -> bool:
    """Whether a tensor can be put in the place of a parameter's."""
    alike = all(getattr(stored, name) == getattr(new, name) for name in ("shape", "dtype", "device"))
    alike = alike and stored.stride() == new.stride()
    plain = type(stored) is nn.Parameter and type(new) in (Tensor, nn.Parameter)
    return alike and plain and not (stored.is_inference() or new.is_inference())
