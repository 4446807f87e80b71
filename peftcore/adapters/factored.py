"""FactoredDelta: deltas made of small factors, scaled by alpha / r, of which training drops parts.

What the methods of the LyCORIS family (arXiv 2309.14859) share: how a factor is split once more, for a convolution in
the Tucker form too (FedPara's proposition 3, arXiv 2108.06098), the scaling, and the two kinds of dropout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from peftcore.adapters import starts
from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.dropout import check_dropout
from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig, dropout_option, option


class FactoredConfig(LayerConfig):
    """What every method of the family can be asked."""

    r: int = option(8, "Rank of the factors.", at_least=1, pattern="rank_pattern")
    alpha: float = option(8, "Numerator of the scaling, alpha / r.", pattern="alpha_pattern")
    rank_dropout: float = dropout_option("training leaves out Δ's share of an output feature")
    module_dropout: float = dropout_option("training leaves out a layer's Δ")
    use_effective_conv2d: bool = option(
        False, "Split the kernel of a convolution off into a core of its own (Tucker form), if it is larger than 1."
    )
    rank_pattern: dict[str, int] = option({}, "Ranks of single layers, by regular expressions on their paths' ends.")
    alpha_pattern: dict[str, float] = option({}, "Values of alpha for single layers, written as rank_pattern.")


class FactoredDelta(WeightDelta):
    """A delta made of small factors.

    The author makes factors by :meth:`uniform` and :meth:`split`, multiplies them in :meth:`delta_weight`, and if
    :meth:`delta_forward` is replaced, lets its result pass through :meth:`dropped`.

    Attributes:
        r: The rank.
        scaling: alpha / r; may be set.
        kernel: Sizes of a convolution's kernel; empty elsewhere.
        sizes: The weight as ``(out, in)``, the kernel and the other groups left out.
        rescales_kept: Whether ``rank_dropout`` scales the features that it keeps, so that their mean share is 1.

    Raises:
        ConfigError: A dropout is asked for on a layer whose weight is used as a whole.
    """

    kinds = MATRIX_KINDS
    rescales_kept: bool = True

    def __init__(self, base: BaseLayer, config: FactoredConfig, shared: Any = None) -> None:
        super().__init__(base, config, shared)
        for field in ("rank_dropout", "module_dropout"):
            check_dropout(base, config, field)
        self.r = config.r
        self.scaling = config.alpha / config.r
        self.rank_dropout, self.module_dropout = config.rank_dropout, config.module_dropout
        self.kernel = tuple(base.weight_shape[2:]) if base.kind.startswith("conv") else ()
        self.sizes = base.out_features, base.in_features // base.groups
        self._has_core = config.use_effective_conv2d and math.prod(self.kernel) > 1

    # ------------------------------------------------------------------------------------------ the factors

    def uniform(self, *shape: int) -> nn.Parameter:
        """Return a parameter that starts as torch's own layers do: uniform within ±1/√fan-in.

        Args:
            *shape: ``(out, *fan_in)``; with stacked experts, each has one of this shape.
        """
        return nn.Parameter(starts.uniform(*self.base.stack_shape, *shape, fan_in=math.prod(shape[1:])))

    def split(self, out: int, into: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
        """Return the parts of one factor of rank r, for :meth:`join`.

        They are ``[out, r]``, ``[r, in · kernel]`` and None; in the Tucker form, ``[r, out]``, ``[r, in]`` and a core
        ``[r, r, *kernel]``, whose shape ends in 1 if the kernel has one dimension: so files have it.

        Args:
            out: Outputs of the factor.
            into: Its inputs, without the kernel.
        """
        if not self._has_core:
            return self.uniform(out, self.r), self.uniform(self.r, into * math.prod(self.kernel)), None
        core = (*self.kernel, 1) if len(self.kernel) == 1 else self.kernel
        return self.uniform(self.r, out), self.uniform(self.r, into), self.uniform(self.r, self.r, *core)

    @staticmethod
    def join(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
        """Return the factor that :meth:`split` made the parts of, as ``[out, in · kernel]``."""
        return a @ b if core is None else torch.einsum("ij...,io,jn->on...", core, a, b).flatten(1)

    # ---------------------------------------------------------------------------------------------- dropout

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return the layer's operation with Δ as its weight, and parts of it dropped in training."""
        return self.dropped(super().delta_forward(x))

    def acts_whole(self) -> bool:
        """Return whether nothing is dropped, and the method has no way of its own to let Δ act."""
        drops = self.training and (self.rank_dropout > 0 or self.module_dropout > 0)
        return type(self).delta_forward is FactoredDelta.delta_forward and not drops

    def dropped(self, output: Tensor) -> Tensor:
        """Return Δ's share of the output, in training without the features and the calls that dropout has chosen.

        All rows of a batch lose the same: what is left out is part of the weight.
        """
        if self.training and self.rank_dropout > 0:
            kept = self._kept(output)
            output = self.base.with_features_last(lambda features: features * kept, output)
        if self.training and self.module_dropout > 0:
            output = output * (torch.rand((), device=output.device) >= self.module_dropout)
        return output

    def _kept(self, output: Tensor) -> Tensor:
        kept = (torch.rand(self.base.out_features, device=output.device) >= self.rank_dropout).float()
        if self.rescales_kept:
            kept = kept / kept.mean().clamp(min=1 / len(kept))  # where nothing is kept, nothing is divided by zero
        return kept.to(output.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.r}, scaling={self.scaling:g}"
