"""OutputScale: y' = M y + b, the family of methods that change what a layer puts out, or what goes into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftcore.adapters.base import Adapter, Below


class OutputScale(Adapter):
    """A linear change of a layer's output, bias included, or of its input, and a shift.

    The author writes :meth:`scale_output`, :meth:`scale_input` or :meth:`shift`, whatever the method has.
    """

    changes_bias = True

    def scale_output(self, features: Tensor) -> Tensor:
        """Return the changed features, a linear map over the last dimension.

        Args:
            features: ``[..., out]``, in the adapter's dtype.
        """
        return features

    def scale_input(self, features: Tensor) -> Tensor:
        """Return the changed features of the input, a diagonal map over the last dimension.

        Args:
            features: ``[..., in]``, in the adapter's dtype.
        """
        return features

    def shift(self) -> Tensor | None:
        """Return what is added to the output, ``[out]``, or None."""
        return None

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run what stands below on the changed input, and change its output."""
        own = type(self)
        if own.scale_input is not OutputScale.scale_input:
            x = self.base.with_features_last(self.scale_input, self.cast(x))
        output = below(x, *args, **kwargs)
        if own.scale_output is not OutputScale.scale_output:
            output = self.base.with_features_last(self.scale_output, self.cast(output))
        shift = self.shift()
        return output if shift is None else self.base.add_bias(output, shift)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight with its outputs and inputs changed, and the bias changed and shifted."""
        own = type(self)
        if own.scale_input is not OutputScale.scale_input:
            ones = torch.ones(self.base.in_features, device=weight.device, dtype=weight.dtype)
            weight = self.base.scale_weight_inputs(weight, self.scale_input(ones))
        if own.scale_output is not OutputScale.scale_output:
            weight = self.scale_output(weight.movedim(0, -1)).movedim(-1, 0)
            bias = None if bias is None else self.scale_output(bias.to(weight.dtype))
        shift = self.shift()
        if shift is None:
            return weight, bias
        return weight, shift if bias is None else bias + shift
