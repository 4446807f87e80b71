"""Parts of a fused layer, for shared state that holds something for each layer: parts find what is the whole one's."""

from __future__ import annotations

from torch import Tensor

from peftcore.base_layers.base import BaseLayer
from peftcore.base_layers.rows import RowsLayer


def whole_layer(base: BaseLayer) -> BaseLayer:
    """Return the fused layer that a view shows a part of; any other view is returned itself.

    Shared state is made from views of whole layers, and asked by adapters on their parts.
    """
    return base.base if isinstance(base, RowsLayer) else base


def own_rows(base: BaseLayer, tensor: Tensor) -> Tensor:
    """Return the rows that belong to a part of a fused layer, all of them for a whole layer.

    Args:
        base: The part's view.
        tensor: Has a row for each output of the whole layer, ``[out, ...]``.
    """
    return tensor[base.rows] if isinstance(base, RowsLayer) else tensor
