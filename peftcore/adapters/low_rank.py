"""Δ = B · A: for the methods that make two factors, and for those that take any two."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from peftcore.adapters.delta import MATRIX_KINDS, ThinFactors, WeightDelta
from peftcore.config import LayerConfig


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
        output = self.base.apply_pointwise(b, self.into_rank(a, self.entering(x)))
        bias = self.delta_bias()
        return output if bias is None else self.base.add_bias(output, bias)

    def thin_factors(self) -> ThinFactors | None:
        """Return A and B on a linear layer; None where a method has a :meth:`delta_forward` of its own, or a bias."""
        own = type(self)
        if self.base.kind != "linear" or own.delta_forward is not LowRankDelta.delta_forward:
            return None
        has_bias = own.delta_bias is not WeightDelta.delta_bias and self.delta_bias() is not None
        return None if has_bias else ThinFactors(*self.factors())

    def into_rank(self, a: Tensor, x: Tensor) -> Tensor:
        """Return the layer's operation with A ``[r, in · kernel]`` as its weight: an output of r features."""
        return self.base.apply(a.reshape(-1, *self.base.weight_shape[1:]), x)


class TakesFactors:
    """Says of an adapter class that its adapters can hold any Δ of low rank, whoever made it.

    Adapters of other methods are then converted to it; see :mod:`peftcore.conversion`.
    A class of a method's adapters derives from it beside its family.
    """

    @classmethod
    def config_of_rank(cls, rank: int, **fields: Any) -> LayerConfig:
        """Return the method's config for adapters of a rank.

        Args:
            rank: The largest rank that Δ has on any layer.
            **fields: What every method's config has: ``target_modules``, ``task_type`` …
        """
        raise NotImplementedError

    def take_factors(self, a: Tensor, b: Tensor) -> None:
        """Let Δ be ``b @ a``.

        Args:
            a: ``[r, in · kernel]``, where r is the rank that the config gives.
            b: ``[out, r]``. Both have ``[experts]`` in front where weights are stacked, and ``[groups]`` for grouped
                convolutions, whose out and r are then those of one group.
        """
        raise NotImplementedError
