"""The kit bites: each adapter here is wrong in one way, and the check that is meant for it says so."""

import pytest
import torch
from torch import nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.config import LayerConfig, option
from peftcore.testing import SAMPLES, LayerMethodTests


class WrongConfig(LayerConfig, method="wrong"):
    r: int = option(2, "Rank.", at_least=1)
    scale: float = option(1.0, "Factor of the change.")


class PairConfig(LayerConfig, method="wrong"):
    r: int = option(2, "Rank.", at_least=1)
    scale: float = option(1.0, "Factor of the change.")
    pair: tuple[int, int] = option((1, 2), "Comes back from JSON as a list.")


class Suite(LayerMethodTests):
    configs = ({"r": 2}, {"r": 3, "scale": 0.5})
    samples = SAMPLES[:1]


class Right(WeightDelta):
    """W + scale · B · A, without a mistake; the others derive from it."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        out, into = base.matrix_shape
        self.scale = config.scale
        self.wrong_a = nn.Parameter(torch.randn(config.r, into) / 3)
        self.wrong_b = nn.Parameter(torch.zeros(out, config.r))

    def delta_weight(self):
        return self.wrong_b @ self.wrong_a * self.scale

    def delta_forward(self, x):
        return x @ self.wrong_a.T @ self.wrong_b.T * self.scale


class SharesItsParameters(Right):
    """One parameter per layer, whatever the adapter."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.wrong_b = base.layer.__dict__.setdefault("wrong_bs", {}).setdefault(config.r, self.wrong_b)


class SharesABuffer(Right):
    """Adapters of a class write to one tensor."""

    gain = torch.ones(1)

    def delta_weight(self):
        return super().delta_weight() * (1 + self.wrong_b.detach().abs().mean())
