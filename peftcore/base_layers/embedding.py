"""Embeddings: a linear map from one-hot tokens, so that whatever changes a matrix works on them."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftcore.base_layers.base import DenseLayer

#: torch divides by the norm plus this when it renormalises.
_RENORM_EPSILON = 1e-7


class EmbeddingLayer(DenseLayer):
    """``nn.Embedding``: canonical weight ``[dim, vocabulary]``, a transposed view of the stored one.

    * ``padding_idx``: that row of a computed weight receives no gradient, as torch does it.
    * ``scale_grad_by_freq``: gradients of a computed weight are scaled as those of the stored one would be.
    * ``sparse``: has no effect on a computed weight, whose gradient is dense (sparse ones exist for leaves alone).
    * ``max_norm``: rows are renormalised on their way out, and no stored weight changes: torch writes the renormalised
      rows back, which would move the frozen weight under its adapters. Not additive.

    A subclass with a ``forward`` of its own (scaled or positional embeddings) keeps it: :meth:`apply` runs it with the
    weight replaced. It counts as additive if it takes the token ids alone; then its output is taken to be linear in
    the weight.

    Attributes:
        has_own_forward: Whether the layer's class replaces torch's ``forward``.
    """

    kind: ClassVar[str] = "embedding"
    bias_name: ClassVar[str] = ""
    layer: Any

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.has_own_forward = type(layer).forward is not nn.Embedding.forward
        self.additive = self.layer.max_norm is None and not (self.has_own_forward and _takes_more_than_ids(type(layer)))

    def _measure(self, stored: torch.Size) -> None:
        self.in_features, self.out_features = stored

    def read_weight(self) -> Tensor:
        """Return the weight as ``[dim, vocabulary]``, a transposed view of the stored one."""
        return self.stored.t()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the frozen layer, without the change that ``max_norm`` makes to a weight in passing."""
        if self.layer.max_norm is not None:
            return self.apply(self.read_weight(), *args, **kwargs)
        return super().forward(*args, **kwargs)

    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Look ``ids`` ``[...]`` up in ``weight`` ``[any, vocabulary]``; the output is ``[..., any]``."""
        if not self.has_own_forward:
            return self._look_up(weight, *args, **kwargs)
        table = weight.t()
        if self.layer.max_norm is not None:
            table = table.clone()  # torch renormalises it in place
        output: Tensor = functional_call(self.layer, {"weight": table}, args, kwargs)
        return output

    def _look_up(self, weight: Tensor, input: Tensor) -> Tensor:
        layer = self.layer
        rows = nn.functional.embedding(
            input, weight.t(), padding_idx=layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq
        )
        return rows if layer.max_norm is None else _renormalised(rows, layer.max_norm, layer.norm_type)


def _renormalised(rows: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Shrink the rows (last dimension) whose norm is above ``max_norm`` to it."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, norm_type, dim=-1, keepdim=True)
    factors = torch.where(norms > max_norm, max_norm / (norms + _RENORM_EPSILON), 1.0)
    return rows * factors.to(rows.dtype)


def _takes_more_than_ids(layer_class: type[nn.Module]) -> bool:
    return len(inspect.signature(layer_class.forward).parameters) > 2
