"""The kit lets pass what is right: methods of several sorts, on every kind of layer."""

import pytest
import torch
from torch import nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.config import LayerConfig, option
from peftcore.testing import SAMPLES, LayerMethodTests


class RightConfig(LayerConfig, method="right"):
    scale: float = option(1.0, "Factor of the change.")
    start: float = option(0.0, "Where the parameters start.")


class Suite(LayerMethodTests):
    configs = ({}, {"scale": 0.5})
    samples = tuple(sample for sample in SAMPLES if sample.plain)


class Grows(WeightDelta):
    """W + scale · u · vᵀ on every kind of layer, v from a file's buffer."""

    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scale = config.scale
        self.right_u = nn.Parameter(torch.full(base.weight_shape[:-1], config.start))
        self.register_buffer("right_v", torch.randn(base.weight_shape[-1]))

    def delta_weight(self):
        return self.right_u.unsqueeze(-1) * self.right_v * self.scale


class Turns(Adapter):
    """W · (1 + s · R): not a sum, so the order matters."""

    kinds = frozenset({"linear"})

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scale = config.scale
        self.right_r = nn.Parameter(torch.zeros(base.in_features, base.in_features))

    def forward(self, below, x, *args, **kwargs):
        return below(x + (self.cast(x) @ self.right_r.T).to(x.dtype) * self.scale, *args, **kwargs)

    def fold(self, weight, bias):
        return weight + weight.to(self.dtype) @ self.right_r * self.scale, bias


class Gates(Adapter):
    """The output times a gate that depends on the input: no weight can hold it."""

    kinds = frozenset({"linear", "embedding"})
    mergeable = False
    unmergeable_because = "the gate depends on the input"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scale = config.scale
        self.right_gate = nn.Parameter(torch.zeros(base.out_features))

    def forward(self, below, x, *args, **kwargs):
        output = below(x, *args, **kwargs)
        gate = torch.tanh(self.cast(output) * self.right_gate) * self.scale
        return output + (output * gate).to(output.dtype)


class DrawsFromASeed(WeightDelta):
    """A fixed projection that no file holds, drawn from a seed where the layer is."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        generator = torch.Generator().manual_seed(3)
        projection = torch.randn(base.in_features, generator=generator, device="cpu") * config.scale
        self.register_buffer("projection", projection.to(base.device), persistent=False)
        self.right_u = nn.Parameter(torch.zeros(base.out_features))

    def delta_weight(self):
        return torch.outer(self.right_u, self.projection)


class MaybeMergeable(Gates):
    """Mergeable or not, as the config says."""

    kinds = frozenset({"linear"})
    unmergeable_because = "the gate depends on the input unless scale is 1"
    mergeable = property(lambda self: self.scale == 1)

    def forward(self, below, x, *args, **kwargs):
        if self.mergeable:
            output = below(x, *args, **kwargs)
            return output + (self.cast(output) * self.right_gate).to(output.dtype)
        return super().forward(below, x, *args, **kwargs)

    def fold(self, weight, bias):
        factor = 1 + self.right_gate
        return weight * factor.unsqueeze(-1), None if bias is None else bias * factor


@pytest.mark.parametrize("adapter_cls", [Grows, Turns, Gates, DrawsFromASeed, MaybeMergeable], ids=lambda c: c.__name__)
def test_what_is_right_passes(adapter_cls, failures_of):
    assert failures_of(Suite, RightConfig, adapter_cls) == {}


def test_a_start_that_is_meant_is_declared(failures_of):
    check = {"test_start_is_the_frozen_model"}
    configs = ({"start": 1.0}, {"start": 2.0})
    assert set(failures_of(Suite, RightConfig, Grows, check, configs=configs)) == check


def test_a_declared_start_passes(failures_of):
    said = {"configs": ({"start": 1.0}, {"start": 2.0}), "no_identity_because": "it starts from ones"}
    assert failures_of(Suite, RightConfig, Grows, {"test_start_is_the_frozen_model"}, **said) == {}
