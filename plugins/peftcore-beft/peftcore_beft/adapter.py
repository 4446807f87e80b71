"""BeftAdapter: a shift of a layer's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.scale import OutputScale
from peftcore.base_layers import BaseLayer
from peftcore_beft.config import BeftConfig


class BeftAdapter(OutputScale):
    """BEFT on one layer: y = W x + b + δ (arXiv 2509.15974).

    Its parameter is ``beft_bias``, δ as ``[1, out]``. Merged, a layer without a bias gets one.
    """

    # A shift alone is a sum, whose order does not matter.
    commutes = True

    def __init__(self, base: BaseLayer, config: BeftConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        shape = (1, base.out_features)
        self.beft_bias = nn.Parameter(torch.zeros(shape) if config.init_weights else torch.randn(shape))

    def shift(self) -> Tensor:
        """Return δ, ``[out]``."""
        return self.beft_bias.flatten()
