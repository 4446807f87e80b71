"""Reading and writing weights and biases, for every kind alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.base_layers import ParameterLayer, RowsLayer, TransposedLinearLayer, adapt
from peftcore.base_layers.base import innermost
from peftcore.exceptions import MergeError, UnsupportedLayerError


class Transposed(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, **kwargs))
        self.bias = nn.Parameter(torch.randn(5, **kwargs))


class Experts(nn.Module):
    def __init__(self, is_transposed=False, **kwargs):
        super().__init__()
        self.is_transposed = is_transposed
        self.gate = nn.Parameter(torch.randn(2, 5, 3, **kwargs))


VIEWS = {
    "linear": lambda **kw: adapt(nn.Linear(3, 5, **kw)),
    "transposed linear": lambda **kw: TransposedLinearLayer(Transposed(**kw)),
    "conv1d": lambda **kw: adapt(nn.Conv1d(4, 6, 3, groups=2, **kw)),
    "conv2d": lambda **kw: adapt(nn.Conv2d(4, 6, (3, 2), groups=2, **kw)),
    "conv3d": lambda **kw: adapt(nn.Conv3d(4, 6, (3, 2, 1), groups=2, **kw)),
    "embedding": lambda **kw: adapt(nn.Embedding(7, 4, **kw)),
    "attention": lambda **kw: adapt(nn.MultiheadAttention(4, 2, **kw)),
    "experts": lambda **kw: ParameterLayer(Experts(**kw), "gate"),
    "transposed experts": lambda **kw: ParameterLayer(Experts(True, **kw), "gate"),
    "some rows": lambda **kw: RowsLayer(adapt(nn.Linear(3, 5, **kw)), slice(1, 4)),
    "scattered rows": lambda **kw: RowsLayer(adapt(nn.Linear(3, 5, **kw)), torch.tensor([4, 0, 2])),
}
all_kinds = pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
with_bias = pytest.mark.parametrize("kind", ["linear", "transposed linear", "conv1d", "conv2d", "conv3d", "attention"])


@all_kinds
@pytest.mark.parametrize("trains", [True, False])
def test_adding_and_replacing_keep_the_parameter(make, trains):
    base = make()
    base.layer.requires_grad_(trains)
    parameter = getattr(base.layer, base.weight_name)
    before, delta = base.weight().detach().clone(), torch.randn(base.weight_shape)
    base.add_(delta)
    assert torch.equal(base.weight(), before + delta)
    base.replace_(before)
    assert torch.equal(base.weight(), before)
    assert getattr(base.layer, base.weight_name) is parameter
    assert parameter.requires_grad is trains
    assert parameter.grad_fn is None


@all_kinds
def test_a_shape_that_does_not_fit_is_refused(make):
    base = make()
    before = {name: value.clone() for name, value in base.layer.state_dict().items()}
    too_small = torch.ones(1, *base.weight_shape[1:])  # would broadcast
    for write in (base.add_, base.replace_):
        with pytest.raises(MergeError, match="does not fit"):
            write(too_small)
    assert all(torch.equal(value, before[name]) for name, value in base.layer.state_dict().items())


@all_kinds
@settings(deadline=None)
@given(
    stored=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    given=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_sums_are_formed_in_the_wider_dtype(make, stored, given):
    base = make(dtype=stored)
    before, delta = base.weight().detach().clone(), torch.randn(base.weight_shape).to(given)
    # Of two halves, neither holds the other: float32 does.
    wide = torch.promote_types(stored, given)
    base.add_(delta)
    assert base.weight().dtype == stored
    assert torch.equal(base.weight(), (before.to(wide) + delta.to(wide)).to(stored))
    base.replace_(delta)
    assert torch.equal(base.weight(), delta.to(stored))


@all_kinds
def test_nothing_is_recorded_and_inference_tensors_can_be_written(make):
    with torch.inference_mode():
        base = make()
    before = base.weight().clone()
    base.add_(torch.ones(base.weight_shape, requires_grad=True))
    assert torch.equal(base.weight(), before + 1)
    base.replace_(before)
    assert torch.equal(base.weight(), before)
    with torch.inference_mode():
        delta = torch.ones(base.weight_shape)
        usual = make()
        usual.add_(delta)
    usual.add_(delta)


@all_kinds
def test_weights_on_the_meta_device(make):
    base = make(device="meta")
    base.add_(torch.ones(base.weight_shape, device="meta"))
    base.replace_(torch.ones(base.weight_shape))
    assert base.weight().is_meta


@with_bias
def test_a_bias_is_written_in_place(kind):
    base = VIEWS[kind](dtype=torch.bfloat16)
    stored, new = base.bias, torch.randn(base.out_features)
    base.set_bias_(new)
    assert base.bias is stored
    assert torch.equal(base.bias, new.to(torch.bfloat16))
    with pytest.raises(MergeError):
        base.set_bias_(torch.zeros(1))


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d", "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_comes_and_goes_where_there_was_none(kind, dtype):
    base = VIEWS[kind](bias=False, dtype=dtype)
    before = base.layer.state_dict().keys()
    new = torch.randn(base.out_features)
    base.set_bias_(new)
    new.zero_()
    made = base.layer.get_parameter(base.bias_name)
    assert made is base.bias
    assert made.dtype == dtype
    assert made.abs().min() > 0
    assert not made.requires_grad
    base.set_bias_(None)
    assert base.bias is None
    assert base.layer.state_dict().keys() == before
    assert base.bias_name in base.layer._parameters
    with pytest.raises(MergeError):
        base.set_bias_(torch.zeros(1))
    base.set_bias_(None)


@pytest.mark.parametrize("kind", ["embedding", "experts"])
def test_kinds_without_a_bias(kind):
    base = VIEWS[kind]()
    assert base.bias is None
    base.set_bias_(None)
    with pytest.raises(UnsupportedLayerError, match="can't hold a bias"):
        base.set_bias_(torch.zeros(base.out_features))


def test_the_bias_of_a_layer_that_stands_behind_an_adapted_one(folded):
    layer = nn.Linear(3, 5, bias=False)
    base = adapt(layer)
    base.layer = folded(ParameterLayer(layer, "weight"))
    base.set_bias_(torch.ones(5))
    assert layer.bias is base.bias
    base.set_bias_(None)
    assert layer.bias is None
    assert innermost(base.layer, "weight") == (layer, "base_layer.weight")


# Kinds to which a low-rank factor can be applied: their apply() takes any number of outputs.
INPUTS = {
    "linear": lambda: torch.randn(2, 7, 3),
    "transposed linear": lambda: torch.randn(2, 7, 3),
    "conv1d": lambda: torch.randn(2, 4, 9),
    "conv2d": lambda: torch.randn(2, 4, 9, 8),
    "conv3d": lambda: torch.randn(2, 4, 5, 6, 7),
    "embedding": lambda: torch.randint(7, (2, 5)),
    "some rows": lambda: torch.randn(2, 7, 3),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_rank_factors_equal_their_product(kind, dtype):
    base, rank = VIEWS[kind](), 4
    down = torch.randn(rank, *base.weight_shape[1:])
    up = torch.randn(base.out_features, rank // base.groups)
    # Group by group, since a group's outputs see that group's share of the rank only.
    product = torch.cat(
        [
            u @ d.reshape(rank // base.groups, -1)
            for u, d in zip(up.chunk(base.groups), down.chunk(base.groups), strict=True)
        ]
    ).reshape(base.weight_shape)
    x = INPUTS[kind]()
    exact = base.apply(product, x)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype] * exact.abs().max().item()
    x = x.to(dtype) if x.is_floating_point() else x
    features = base.apply(down.to(dtype), x)
    assert features.dtype == dtype
    assert torch.allclose(base.apply_pointwise(up.to(dtype), features).float(), exact, atol=tolerance)


@pytest.mark.parametrize("kind", INPUTS)
def test_apply_and_bias_are_the_layer(kind):
    base, x = VIEWS[kind](), INPUTS[kind]()
    expected = x @ base.layer.weight + base.layer.bias if kind == "transposed linear" else base.forward(x)
    output = base.apply(base.weight(), x)
    output = output if base.bias is None else base.add_bias(output, base.bias)
    assert torch.allclose(output, expected, atol=1e-6)
