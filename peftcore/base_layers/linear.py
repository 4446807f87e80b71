"""Linear layers: ``nn.Linear``, and transformers' ``Conv1D``, which stores its weight transposed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from typing_extensions import Self

from peftcore.base_layers.base import DenseLayer


class LinearLayer(DenseLayer):
    """``nn.Linear`` and its subclasses, if they keep a dense ``weight`` ``[out, in]``."""

    kind: ClassVar[str] = "linear"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return the view, or None if the weight isn't dense or its shape isn't the one that the layer declares.

        Weights packed into floating-point elements betray themselves by their shape alone.
        """
        view = super().of(layer)
        if view is None or view.out_features != layer.out_features or view.in_features != layer.in_features:
            return None
        return view

    def plain_matrix(self) -> tuple[Tensor, Tensor | None] | None:
        return _frozen_tensors(self.layer) if type(self.layer).forward is nn.Linear.forward else None

    def apply(self, weight: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Multiply ``x`` ``[..., in]`` by ``weight`` ``[any, in]``."""
        return nn.functional.linear(x, weight)


class TransposedLinearLayer(DenseLayer):
    """transformers' ``Conv1D``, a linear layer whose weight is stored ``[in, out]``."""

    kind: ClassVar[str] = "linear"

    def _measure(self, stored: torch.Size) -> None:
        self.in_features, self.out_features = stored

    def read_weight(self) -> Tensor:
        """Return the weight as ``[out, in]``, a transposed view of the stored one."""
        return self.stored.t()

    def plain_matrix(self) -> tuple[Tensor, Tensor | None] | None:
        if type(self.layer).__module__ != "transformers.pytorch_utils":
            return None  # a subclass may have a forward of its own
        found = _frozen_tensors(self.layer)
        return None if found is None else (found[0].t(), found[1])

    def apply(self, weight: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Multiply ``x`` ``[..., in]`` by ``weight`` ``[any, in]``."""
        return nn.functional.linear(x, weight)


def _frozen_tensors(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return a layer's weight and bias as they are stored, if its forward is its class's and nothing hangs on it."""
    # Not by attribute: this runs in every call of an adapted layer.
    inside = layer.__dict__
    hooks = inside["_forward_hooks"] or inside["_forward_pre_hooks"]
    if hooks or inside["_backward_hooks"] or inside["_backward_pre_hooks"] or "forward" in inside:
        return None
    if _global_forward_hooks or _global_forward_pre_hooks or _global_backward_hooks or _global_backward_pre_hooks:
        return None
    parameters = inside["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if type(weight) is not nn.Parameter or weight.requires_grad:
        return None
    if bias is not None and (type(bias) is not nn.Parameter or bias.requires_grad):
        return None
    return weight, bias
