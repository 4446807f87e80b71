"""LowRankDelta: two factors, applied one after the other."""

import pytest
import torch
from torch import nn

from peftcore import LayerConfig
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.base_layers import adapt

from .models import same


class PairConfig(LayerConfig, method="pair"):
    pass


class Pair(LowRankDelta):
    def __init__(self, base, rank):
        super().__init__(base, PairConfig())
        out, into = base.matrix_shape
        self.pair_a, self.pair_b = nn.Parameter(torch.randn(rank, into)), nn.Parameter(torch.randn(out, rank))

    def factors(self):
        return self.pair_a, self.pair_b


LAYERS = {
    "linear": (nn.Linear(6, 4), torch.randn(3, 6)),
    "conv": (nn.Conv2d(2, 4, (2, 3), stride=2), torch.randn(3, 2, 7, 7)),
    "grouped conv": (nn.Conv1d(4, 4, 3, groups=2), torch.randn(3, 4, 7)),
    "embedding": (nn.Embedding(9, 4), torch.arange(9)),
}


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_the_factors_do_what_their_product_does(name, rank):
    layer, x = LAYERS[name]
    adapter = Pair(adapt(layer), rank)
    same(adapter.delta_forward(x), adapter.base.apply(adapter.canonical_delta(), x))
    assert adapter.delta_forward(x).abs().max() > 0 or rank == 0


class Shifted(Pair):
    def delta_bias(self):
        return self.pair_b.sum(1)


@pytest.mark.parametrize("name", ["linear", "conv", "grouped conv"])
def test_a_change_of_the_bias_is_added(name):
    layer, x = LAYERS[name]
    adapter = Shifted(adapt(layer), 2)
    expected = adapter.base.add_bias(adapter.base.apply(adapter.canonical_delta(), x), adapter.delta_bias())
    same(adapter.delta_forward(x), expected)
    assert adapter.thin_factors() is None
