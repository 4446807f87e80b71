"""Parameters that take values which a file has in another form than a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def take(module: nn.Module, name: str, value: Tensor) -> None:
    """Copy a value into a parameter; one on the meta device, or of another shape, gives its place to a new one.

    Args:
        module: Holds the parameter itself.
        name: The parameter's name there.
        value: Of any dtype, on any device; it is copied.
    """
    current = getattr(module, name)
    if current.is_meta or current.shape != value.shape:
        device = value.device if current.is_meta else current.device
        taken = value.detach().to(device, current.dtype, copy=True)
        setattr(module, name, nn.Parameter(taken, requires_grad=current.requires_grad))
    else:
        current.copy_(value)
