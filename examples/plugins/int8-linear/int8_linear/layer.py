"""Int8Linear, and how methods see it."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from peftcore.base_layers import BaseLayer
from peftcore.exceptions import MergeError


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight ``[out, in]`` in eight bits, and what each row is to be multiplied by, ``[out, 1]``."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer that stores its weight as integers and one scale for each row."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantised(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b."""
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class Int8BaseLayer(BaseLayer):
    """Reads the weight of an Int8Linear; can't write it, since a merged weight would be rounded anew."""

    kind: ClassVar[str] = "linear"

    layer: Int8Linear

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__(layer)
        self.out_features, self.in_features = layer.weight.shape

    @property
    def weight_shape(self) -> torch.Size:
        """``[out, in]``, known without reading the weight."""
        return self.layer.weight.shape

    def read_weight(self) -> Tensor:
        """Return the weight as numbers."""
        return self.layer.weight * self.layer.scale

    def add_(self, delta: Tensor) -> None:
        """Refuse."""
        self._refuse()

    def replace_(self, weight: Tensor) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise MergeError("An Int8Linear can't hold a merged weight: keep the adapter in the model.")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the layer computes."""
        return self.layer.scale.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.layer.weight.device

    def apply(self, weight: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Multiply ``x`` ``[..., in]`` by ``weight`` ``[any, in]``."""
        return nn.functional.linear(x, weight)
