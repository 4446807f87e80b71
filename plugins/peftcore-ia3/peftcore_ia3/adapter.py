"""IA3Adapter: one factor for each output of a layer, or for each input."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.scale import OutputScale
from peftcore.base_layers import BaseLayer
from peftcore_ia3.config import IA3Config


class IA3Adapter(OutputScale):
    """IA3 on one layer: y = l ∘ (W x + b), or W (l ∘ x) + b on a feedforward layer (arXiv 2205.05638).

    Its parameter is ``ia3_l``: ``[out, 1]``, or ``[1, in]`` on a feedforward layer; on a convolution ``[1, out, 1, …]``
    or ``[1, in, 1, …]`` with a 1 for each spatial dimension.

    Raises:
        ConfigError: A feedforward layer is an embedding, whose inputs are token ids.
    """

    kinds: ClassVar[frozenset[str]] = OutputScale.kinds | {"embedding"}

    ia3_l: nn.Parameter

    def __init__(self, base: BaseLayer, config: IA3Config, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.is_feedforward = config.is_feedforward
        if config.is_feedforward and base.kind == "embedding":
            config.refuse("feedforward_modules", "an embedding's inputs are token ids, which can't be scaled")
        self.ia3_l = nn.Parameter(torch.ones(self._shape()) if config.init_ia3_weights else torch.randn(self._shape()))

    def _shape(self) -> tuple[int, ...]:
        features = self.base.in_features if self.is_feedforward else self.base.out_features
        if self.base.kind.startswith("conv"):
            return (1, features, *[1] * (len(self.base.weight_shape) - 2))
        return (1, features) if self.is_feedforward else (features, 1)

    def output_factors(self) -> Tensor | None:
        """Return l, ``[out]``, or None on a feedforward layer."""
        return None if self.is_feedforward else self.ia3_l.flatten()

    def input_factors(self) -> Tensor | None:
        """Return l, ``[in]``, on a feedforward layer, else None."""
        return self.ia3_l.flatten() if self.is_feedforward else None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, is_feedforward={self.is_feedforward}"
