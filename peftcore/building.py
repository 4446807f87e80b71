"""How the modules of an adapter are made: where, in which dtype, and without wasted work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from peftcore.adapters.base import Adapter

#: dtypes in which training is too coarse; adapters on such layers are kept in float32 unless told otherwise.
COARSE_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Return a module's parameters, shared ones repeatedly: torch's own way, without that, is several times slower."""
    found: list[nn.Parameter] = []
    _collect_parameters(module, found)
    return found


def _collect_parameters(module: nn.Module, found: list[nn.Parameter]) -> None:
    for parameter in module._parameters.values():
        if parameter is not None:
            found.append(parameter)
    for child in module._modules.values():
        if child is not None:
            _collect_parameters(child, found)


def has_unsaved_tensors(module: nn.Module) -> bool:
    """Return whether a module holds what no file brings: indices, projections drawn from a seed."""
    if module._non_persistent_buffers_set:
        return True
    # In a list, which is quicker than a generator: this runs for every adapter module.
    return any([has_unsaved_tensors(child) for child in module._modules.values() if child is not None])


def making_tensors_on(device: torch.device) -> AbstractContextManager[object]:
    """Return a block in which new tensors are made on a device, for nothing where that is the default."""
    return nullcontext() if device == torch.get_default_device() else device


def adapter_dtype(layer_dtype: torch.dtype, autocast: bool) -> torch.dtype:
    """Return the dtype of an adapter on a layer: the layer's, or a finer one if that is too coarse to train in."""
    return torch.float32 if autocast and layer_dtype in COARSE_DTYPES else layer_dtype


def settle_dtype(adapter: Adapter, layer_dtype: torch.dtype, autocast: bool) -> None:
    """Bring an adapter to its layer's dtype, unless that is too coarse to train in."""
    dtype = adapter_dtype(layer_dtype, autocast)
    if dtype.is_floating_point and adapter.dtype != dtype:
        adapter.to(dtype)
