"""Convolutions in one, two and three dimensions, with whatever geometry the layer has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftcore.base_layers.base import DenseLayer
from peftcore.exceptions import UnsupportedLayerError


class ConvLayer(DenseLayer):
    """A convolution; the kinds differ in the number of spatial dimensions.

    A subclass with a ``forward`` of its own (padding that depends on the input, say) keeps it: :meth:`apply` runs it
    with the weight replaced, and takes for granted that its output is linear in the weight.

    Attributes:
        kernel_size: One number per spatial dimension.
        has_own_forward: Whether the layer's class replaces torch's ``forward``.
    """

    #: The torch class whose ``forward`` and ``_conv_forward`` this view knows.
    torch_class: ClassVar[type[nn.Module]]
    layer: Any

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.has_own_forward = type(layer).forward is not self.torch_class.forward

    def _measure(self, stored: torch.Size) -> None:
        self.groups = self.layer.groups
        self.out_features, in_per_group, *kernel = stored
        self.in_features = in_per_group * self.groups
        self.kernel_size = tuple(kernel)

    def apply(self, weight: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Convolve in the layer's geometry.

        Args:
            weight: ``[any, in / groups, *kernel]``, the number of outputs a multiple of the groups; or
                ``[any, in, *kernel]``, which sees all inputs whatever the groups.
            x: ``[(batch,) in, *spatial]``.
            *args: What a subclass's own ``forward`` takes beside.
            **kwargs: What a subclass's own ``forward`` takes beside.
        """
        if weight.shape[1] * self.groups != self.in_features:
            return self._across_groups(weight, x)
        if not self.has_own_forward:
            output: Tensor = self.layer._conv_forward(x, weight, None)
            return output
        replaced = {"weight": weight}
        if self.bias is not None:
            replaced["bias"] = weight.new_zeros(weight.shape[0])
        output = functional_call(self.layer, replaced, (x, *args), kwargs)
        return output

    def _across_groups(self, weight: Tensor, x: Tensor) -> Tensor:
        padding = self.layer.padding
        if self.layer.padding_mode != "zeros":
            x = nn.functional.pad(x, self.layer._reversed_padding_repeated_twice, mode=self.layer.padding_mode)
            padding = 0
        return self._convolve(x, weight, stride=self.layer.stride, padding=padding, dilation=self.layer.dilation)

    def _convolve(self, x: Tensor, weight: Tensor, **geometry: Any) -> Tensor:
        convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(self.kernel_size) - 1]
        return convolve(x, weight, **geometry)

    def apply_pointwise(self, matrix: Tensor, features: Tensor) -> Tensor:
        """Multiply the channels, group by group, by ``matrix`` ``[out, r / groups]``: a convolution of size 1."""
        kernel = matrix.reshape(*matrix.shape, *[1] * len(self.kernel_size))
        return self._convolve(features, kernel, groups=self.groups)

    def with_features_last(self, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Let a function over the last dimension act on the channels, which stand before the spatial dimensions."""
        channels = -len(self.kernel_size) - 1
        return change(x.movedim(channels, -1)).movedim(-1, channels)

    def scale_weight_inputs(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return a weight ``[out, in / groups, *kernel]`` whose inputs, group by group, are multiplied by ``[in]``."""
        ones = [1] * len(self.kernel_size)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]) * factors.reshape(self.groups, 1, -1, *ones)
        return grouped.flatten(0, 1)

    def add_bias(self, output: Tensor, bias: Tensor) -> Tensor:
        """Add a vector ``[out]`` to the channels, which stand before the spatial dimensions."""
        return output + bias.reshape(-1, *[1] * len(self.kernel_size))


class Conv1dLayer(ConvLayer):
    """``nn.Conv1d``: weight ``[out, in / groups, k]``."""

    kind: ClassVar[str] = "conv1d"
    weight_dims: ClassVar[int] = 3
    torch_class: ClassVar[type[nn.Module]] = nn.Conv1d


class Conv2dLayer(ConvLayer):
    """``nn.Conv2d``: weight ``[out, in / groups, kh, kw]``."""

    kind: ClassVar[str] = "conv2d"
    weight_dims: ClassVar[int] = 4
    torch_class: ClassVar[type[nn.Module]] = nn.Conv2d

    @property
    def can_separate(self) -> bool:
        """Whether :meth:`apply_separable` equals the dense weight; if not, use the dense one.

        It needs one group, numeric padding with zeros, and torch's own ``forward``.
        """
        layer = self.layer
        plain_padding = not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
        return self.groups == 1 and plain_padding and not self.has_own_forward

    def apply_separable(self, rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
        """Convolve along the width, then along the height; the dense weight is never formed.

        It would be ``Σ_r columns[o, r, h] · rows[r, i, w]``. This is the balanced factorisation of ALF's adapters: seen
        as a matrix of ``out · kh`` by ``in · kw``, the weight has rank ``r``.

        Args:
            rows: ``[r, in, 1, kw]``.
            columns: ``[out, r, kh, 1]``.
            x: ``[(batch,) in, height, width]``.

        Raises:
            UnsupportedLayerError: The geometry can't be split, see :attr:`can_separate`.
        """
        if not self.can_separate:
            raise UnsupportedLayerError(
                f"{self.layer} can't be computed in two stripes (it needs one group and numeric padding with zeros); "
                "apply the dense weight."
            )
        (sh, sw), (ph, pw), (dh, dw) = self.layer.stride, self.layer.padding, self.layer.dilation
        stripes = nn.functional.conv2d(x, rows, stride=(1, sw), padding=(0, pw), dilation=(1, dw))
        return nn.functional.conv2d(stripes, columns, stride=(sh, 1), padding=(ph, 0), dilation=(dh, 1))


class Conv3dLayer(ConvLayer):
    """``nn.Conv3d``: weight ``[out, in / groups, kd, kh, kw]``."""

    kind: ClassVar[str] = "conv3d"
    weight_dims: ClassVar[int] = 5
    torch_class: ClassVar[type[nn.Module]] = nn.Conv3d
