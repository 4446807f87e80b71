"""Base layers: which frozen layers the core knows, one small class per kind.

:func:`adapt` finds the class for a layer; extensions add theirs through the hook ``adapt_base_layer``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from torch import nn

from peftcore.base_layers.attention import AttentionLayer, reads_weights
from peftcore.base_layers.base import BaseLayer, DenseLayer
from peftcore.base_layers.conv import Conv1dLayer, Conv2dLayer, Conv3dLayer, ConvLayer
from peftcore.base_layers.embedding import EmbeddingLayer
from peftcore.base_layers.linear import LinearLayer, TransposedLinearLayer
from peftcore.base_layers.module import OpaqueLayer
from peftcore.base_layers.parameter import ParameterLayer
from peftcore.base_layers.rows import PartsSpec, Rows, RowsLayer, parts_of

__all__ = [
    "SUPPORTED",
    "AttentionLayer",
    "BaseLayer",
    "Conv1dLayer",
    "Conv2dLayer",
    "Conv3dLayer",
    "ConvLayer",
    "DenseLayer",
    "EmbeddingLayer",
    "LinearLayer",
    "OpaqueLayer",
    "ParameterLayer",
    "PartsSpec",
    "Rows",
    "RowsLayer",
    "TransposedLinearLayer",
    "adapt",
    "parts_of",
    "reads_weights",
]

#: The layers that need no extension, for error messages.
SUPPORTED = (
    "nn.Linear, transformers' Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, "
    "nn.MultiheadAttention (keys and values of the queries' size), each with a dense floating-point weight, "
    "and bare parameters"
)

#: The view of each layer class; classes of libraries that must not be imported here stand by name.
_VIEWS: Mapping[type[nn.Module] | str, type[DenseLayer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: Conv1dLayer,
    nn.Conv2d: Conv2dLayer,
    nn.Conv3d: Conv3dLayer,
    nn.Embedding: EmbeddingLayer,
    nn.MultiheadAttention: AttentionLayer,
    "transformers.pytorch_utils.Conv1D": TransposedLinearLayer,
}


def adapt(layer: nn.Module) -> BaseLayer | None:
    """Return the core's view of a layer, or None if its class, or the way it stores its weight, is not known here."""
    view_of = _view_of(type(layer))  # type: ignore[arg-type]  # mypy takes nn.Module's classes for unhashable
    return None if view_of is None else view_of(layer)


# Bounded, since parametrised modules have a class each.
@functools.lru_cache(maxsize=1024)
def _view_of(layer_class: type[nn.Module]) -> Callable[[nn.Module], DenseLayer | None] | None:
    for ancestor in layer_class.__mro__:
        view = _VIEWS.get(ancestor) or _VIEWS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if view is not None:
            return view.of
    return None
