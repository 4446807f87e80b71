"""BaseLayer: the core's view of one frozen layer.

A method asks the view, never the layer: so one method works on every kind of layer, and a new kind of layer, or a
quantised storage, is one class here and serves every method.

**Canonical orientation.** A weight is a linear map, written ``[out, in]`` with any kernel dimensions behind:

========================  ==============================================
kind                      canonical weight
========================  ==============================================
linear                    ``[out, in]`` (whatever the storage, so transformers' ``Conv1D`` too)
conv1d, conv2d, conv3d    ``[out, in / groups, *kernel]``
embedding                 ``[dim, vocabulary]``: the map that takes a one-hot token to its vector
attention                 ``[3 · dim, dim]``: the stacked input projection
parameter                 ``[out, in]``, or ``[experts, out, in]`` for stacked experts
module                    none: only whole-module adapters (copies, biases) can stand on it
========================  ==============================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class BaseLayer(ABC):
    """A frozen layer as a method sees it: its kind, its sizes, and how to read, write and apply its weight.

    The view holds no parameters and copies nothing; the layer stays the owner of its weight and may be moved or cast.

    Attributes:
        layer: The frozen layer.
        in_features: Size of the feature dimension of the input (vocabulary of an embedding).
        out_features: Size of the feature dimension of the output.
        groups: Groups of a convolution, 1 elsewhere.
    """

    #: What it is: linear, conv1d, conv2d, conv3d, embedding, attention, parameter, module …
    kind: ClassVar[str]
    #: Name of the weight in the layer, for those who read ``layer.weight`` from outside.
    weight_name: ClassVar[str] = "weight"
    #: Whether apply(V + W, x) = apply(V, x) + apply(W, x): then deltas may act on the input one by one.
    additive: bool = True
    #: Whether other code reads the weight and never calls the layer (torch's own attention does with ``out_proj``).
    read_by_owner: bool = False

    layer: nn.Module
    in_features: int
    out_features: int
    groups: int = 1

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    # ------------------------------------------------------------------------------------------ the weight

    @property
    @abstractmethod
    def weight_shape(self) -> torch.Size:
        """The canonical weight's shape, known without reading (dequantising, gathering) it."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The canonical weight seen as a matrix: ``(out, in · kernel)``; per expert for stacked experts."""
        shape = self.weight_shape
        return shape[0], shape[1:].numel()

    @abstractmethod
    def weight(self) -> Tensor:
        """Return the dense weight in canonical orientation; a view where the storage allows, so never write to it."""

    @abstractmethod
    def add_(self, delta: Tensor) -> None:
        """Add a canonical delta to the stored weight, in place, in the weight's dtype.

        Raises:
            MergeError: The storage can't hold another weight.
        """

    @abstractmethod
    def replace_(self, weight: Tensor) -> None:
        """Write a canonical weight into the storage, in place.

        Raises:
            MergeError: The storage can't hold another weight.
        """

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias, ``[out]``, or None."""
        return getattr(self.layer, "bias", None)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype in which the layer computes (of a quantised weight: of its dense form)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weight."""

    # ------------------------------------------------------------------------------------------ its operation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the frozen layer itself."""
        return self.layer(*args, **kwargs)

    @abstractmethod
    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's operation with another canonical weight and no bias.

        The weight may have another number of outputs (a low-rank factor ``[r, in, *kernel]``): stride, padding, dilation
        and groups are the layer's.

        Args:
            weight: ``[any, *weight_shape[1:]]``.
            *args, **kwargs: What the layer is called with.
        """

    def apply_pointwise(self, matrix: Tensor, features: Tensor) -> Tensor:
        """Multiply the feature dimension of an output-like tensor by a matrix: a linear map, or a 1x1 convolution.

        Args:
            matrix: ``[out, r / groups]``.
            features: Shaped as :meth:`apply` returns, with ``r`` features.
        """
        return nn.functional.linear(features, matrix)

    def add_bias(self, output: Tensor, bias: Tensor) -> Tensor:
        """Add a vector ``[out]`` along the feature dimension of an output."""
        return output + bias
