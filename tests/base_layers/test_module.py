"""Modules that are adapted whole."""

import pytest
import torch
from torch import nn

from peftcore.base_layers import OpaqueLayer
from peftcore.exceptions import UnsupportedLayerError

ASKING_FOR_THE_WEIGHT = {
    "weight_shape": lambda base: base.weight_shape,
    "matrix_shape": lambda base: base.matrix_shape,
    "weight": lambda base: base.weight(),
    "add_": lambda base: base.add_(torch.zeros(4)),
    "replace_": lambda base: base.replace_(torch.zeros(4)),
    "apply": lambda base: base.apply(torch.zeros(4), torch.zeros(4)),
    "apply_pointwise": lambda base: base.apply_pointwise(torch.zeros(4), torch.zeros(4)),
}


@pytest.mark.parametrize("ask", ASKING_FOR_THE_WEIGHT.values(), ids=ASKING_FOR_THE_WEIGHT)
def test_it_has_no_weight(ask):
    with pytest.raises(UnsupportedLayerError, match="LayerNorm is handled as a whole"):
        ask(OpaqueLayer(nn.LayerNorm(4)))


def test_it_runs_and_may_have_a_bias():
    layer = nn.LayerNorm(4)
    base, x = OpaqueLayer(layer), torch.randn(2, 4)
    assert torch.equal(base.forward(x), layer(x))
    assert base.bias is layer.bias
    stored = layer.bias
    base.set_bias_(torch.arange(4.0))
    assert layer.bias is stored
    assert stored.tolist() == [0, 1, 2, 3]
    base = OpaqueLayer(nn.RMSNorm(4))
    assert base.bias is None
    base.set_bias_(torch.ones(4))
    assert base.bias.tolist() == [1, 1, 1, 1]
    base.set_bias_(None)
    assert base.bias is None


def test_something_else_called_bias_is_none():
    layer = nn.Identity()
    layer.bias = True
    assert OpaqueLayer(layer).bias is None


def test_dtype_and_device():
    assert OpaqueLayer(nn.LayerNorm(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert OpaqueLayer(nn.LayerNorm(4, device="meta")).device.type == "meta"
    counted = nn.Module()
    counted.register_buffer("count", torch.zeros((), dtype=torch.int64, device="meta"))
    counted.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
    assert OpaqueLayer(counted).dtype == torch.float64
    assert OpaqueLayer(counted).device.type == "meta"
    assert OpaqueLayer(nn.Identity()).dtype == torch.get_default_dtype()
    assert OpaqueLayer(nn.Identity()).device == torch.device("cpu")
