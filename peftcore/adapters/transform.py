"""WeightTransform: W' = T(W), the family of methods that multiply or reshape a weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from peftcore.adapters.base import Adapter, Below


class WeightTransform(Adapter):
    """A change of the weight that is no sum.

    The author writes :meth:`transform`, and :meth:`pre` or :meth:`post` (or both) where acting on the input or on the
    output comes cheaper than changing the weight.
    Transforms are applied in the order of the active adapters: a later one acts on what the earlier ones have made of
    the weight.
    """

    @abstractmethod
    def transform(self, weight: Tensor) -> Tensor:
        """Return the changed weight, whole: nothing is dropped out of it, also while the adapter trains.

        Args:
            weight: Canonical, ``[out, in, *kernel]``, in the wider dtype of weight and adapter. Must stay as it is.
        """

    def transform_in_call(self, weight: Tensor) -> Tensor:
        """Return the changed weight for one forward pass; to be overridden where training drops something out.

        Args:
            weight: As :meth:`transform` takes it.
        """
        return self.transform(weight)

    def pre(self, x: Tensor) -> Tensor:
        """Return a changed input, if T(W)·x equals W times it.

        Args:
            x: The layer's input, in the adapter's dtype, the features in the last dimension.
        """
        return x

    def post(self, output: Tensor) -> Tensor:
        """Return a changed output without bias, if T(W)·x equals ``post`` of W·x.

        Args:
            output: The layer's output without its bias, in the adapter's dtype, the features in the last dimension.
        """
        return output

    def acts_on_input(self) -> bool:
        """Whether :meth:`pre` is used; to be overridden where that depends on the layer."""
        return type(self).pre is not WeightTransform.pre

    def acts_on_output(self) -> bool:
        """Whether :meth:`post` is used; to be overridden where that depends on the layer."""
        return type(self).post is not WeightTransform.post

    def acts_by_weight(self, before: Sequence[Adapter]) -> bool:
        """Whether no cheaper way is exact: there is none, or :meth:`post` can't tell a changed bias from the rest."""
        if not self.acts_on_output():
            return not self.acts_on_input()
        return any(part.changes_bias for part in before)

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run what stands below between :meth:`pre` and :meth:`post`."""
        base = self.base
        if self.acts_on_input():
            x = base.with_features_last(self.pre, self.cast(x))
        output = below(x, *args, **kwargs)
        if not self.acts_on_output():
            return output
        bias = base.read_bias()
        if bias is None:
            return base.with_features_last(self.post, self.cast(output))
        # In the adapter's dtype, so that taking the bias away and adding it again costs no precision.
        output = base.with_features_last(self.post, base.add_bias(self.cast(output), -bias))
        return base.add_bias(output, bias)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return T(W) and the bias as it is."""
        return self.transform(weight), bias

    def fold_in_call(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what :meth:`fold` does, for one forward pass."""
        return self.transform_in_call(weight), bias
