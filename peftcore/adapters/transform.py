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
        """Return the changed weight.

        Args:
            weight: Canonical, ``[out, in, *kernel]``, in the wider dtype of weight and adapter. Must stay as it is.
        """

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

    def acts_by_weight(self, before: Sequence[Adapter]) -> bool:
        """Whether no cheaper way is exact: there is none, or :meth:`post` can't tell a changed bias from the rest."""
        own = type(self)
        if own.post is WeightTransform.post:
            return own.pre is WeightTransform.pre
        return any(part.changes_bias for part in before)

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run what stands below between :meth:`pre` and :meth:`post`."""
        base, own = self.base, type(self)
        if own.pre is not WeightTransform.pre:
            x = base.with_features_last(self.pre, self.cast(x))
        output = below(x, *args, **kwargs)
        if own.post is WeightTransform.post:
            return output
        bias = base.read_bias()
        if bias is None:
            return base.with_features_last(self.post, self.cast(output))
        output = base.with_features_last(self.post, self.cast(base.add_bias(output, -bias)))
        return base.add_bias(output, bias)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return T(W) and the bias as it is."""
        return self.transform(weight), bias
