"""LowRankDelta: Δ = B · A, for the methods that make two factors, trained or not, in whatever way."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta


class LowRankDelta(WeightDelta):
    """An additive change of the weight that is the product of two factors.

    The author writes :meth:`factors`.
    """

    kinds = MATRIX_KINDS

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A ``[r, in · kernel]`` and B ``[out, r]``, shaped after ``base.matrix_shape``.

        Either may have ``[experts]`` in front, where weights are stacked.
        """

    def delta_weight(self) -> Tensor:
        """Return B · A."""
        a, b = self.factors()
        return b @ a

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return the layer's operation with A, then a pointwise map by B.

        Δ is formed for grouped convolutions, and where the rank is 0.
        """
        if self.base.groups > 1:
            return super().delta_forward(x)
        a, b = self.factors()
        if not b.shape[-1]:
            return super().delta_forward(x)
        return self.base.apply_pointwise(b, self.into_rank(a, x))

    def into_rank(self, a: Tensor, x: Tensor) -> Tensor:
        """Return the layer's operation with A ``[r, in · kernel]`` as its weight: an output of r features."""
        return self.base.apply(a.reshape(-1, *self.base.weight_shape[1:]), x)
