"""Linear layers: ``nn.Linear``, and transformers' ``Conv1D``, which stores its weight transposed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
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

    def apply(self, weight: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Multiply ``x`` ``[..., in]`` by ``weight`` ``[any, in]``."""
        return nn.functional.linear(x, weight)
