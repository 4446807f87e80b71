"""Embeddings: each of torch's options, and subclasses that do more than look up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.base_layers import adapt


@settings(deadline=None)
@given(
    vocabulary=st.integers(1, 9),
    dim=st.integers(1, 5),
    shape=st.lists(st.integers(0, 4), max_size=3),
    max_norm=st.sampled_from([None, 0.5, 2.0]),
    norm_type=st.sampled_from([1.0, 2.0, 3.0, float("inf")]),
    padding=st.booleans(),
    sparse=st.booleans(),
)
def test_looking_up_in_the_own_weight_is_the_layer(vocabulary, dim, shape, max_norm, norm_type, padding, sparse):
    layer = nn.Embedding(vocabulary, dim, 0 if padding else None, max_norm=max_norm, norm_type=norm_type, sparse=sparse)
    layer.weight.requires_grad_(False)
    base, ids = adapt(layer), torch.randint(vocabulary, shape)
    before = layer.weight.clone()
    outputs = base.apply(base.weight(), ids), base.forward(ids)
    assert torch.equal(layer.weight, before)
    expected = layer(ids)
    assert outputs[0].shape == (*shape, dim)
    for output in outputs:
        assert torch.allclose(output, expected, atol=1e-6)


def test_the_row_of_padding_receives_no_gradient():
    base = adapt(nn.Embedding(5, 3, padding_idx=2))
    delta = torch.randn(base.weight_shape, requires_grad=True)
    base.apply(base.weight() + delta, torch.tensor([0, 2, 2, 4])).sum().backward()
    assert delta.grad.abs().sum(0).tolist() == [3, 0, 0, 0, 3]


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_gradients_are_scaled_by_frequency(max_norm):
    ids = torch.tensor([0, 1, 1, 1])
    gradients = []
    for scale in (False, True):
        layer = nn.Embedding(3, 2, max_norm=max_norm, scale_grad_by_freq=scale, _weight=torch.ones(3, 2))
        base = adapt(layer)
        weight = base.weight().detach().clone().requires_grad_()
        (base.apply(weight, ids) * torch.tensor([1.0, 3.0])).sum().backward()
        gradients.append(weight.grad)
    assert torch.allclose(gradients[1], gradients[0] / torch.tensor([1, 3, 1]))


def test_gradients_of_a_computed_weight_are_dense():
    base = adapt(nn.Embedding(5, 3, sparse=True))
    down, up = torch.randn(2, 5, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    base.apply_pointwise(up, base.apply(down, torch.tensor([1, 1, 4]))).sum().backward()
    assert down.grad.layout == torch.strided
    assert down.grad.abs().sum(0).ne(0).tolist() == [False, True, False, False, True]


def test_renormalised_rows_have_the_right_gradient():
    base = adapt(nn.Embedding(4, 3, max_norm=0.7, norm_type=3.0, dtype=torch.float64))
    assert not base.additive
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        weight[:, 0] = 0.01  # below the norm
        weight[:, 1] = 0
    ids = torch.tensor([0, 2, 3, 3])
    assert torch.autograd.gradcheck(lambda w: base.apply(w, ids), weight)
    base.apply(weight, torch.tensor([1])).sum().backward()
    assert weight.grad.isfinite().all()


def test_renormalising_in_half_precision():
    layer = nn.Embedding(6, 16, max_norm=0.5, dtype=torch.bfloat16)
    layer.weight.requires_grad_(False)
    base, ids = adapt(layer), torch.arange(6)
    output = base.apply(base.weight(), ids)
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output, layer(ids), atol=1e-2)


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 3 * super().forward(ids)


class Positions(nn.Embedding):
    def __init__(self, positions, dim):
        super().__init__(positions + 2, dim)

    def forward(self, tokens, start=0):
        positions = torch.arange(start, start + tokens.shape[1]).expand(tokens.shape)
        return super().forward(positions + 2)


def test_a_subclass_that_scales_is_additive():
    layer, ids = Scaled(5, 3), torch.tensor([[0, 4], [2, 2]])
    base = adapt(layer)
    assert base.additive
    assert torch.equal(base.apply(base.weight(), ids), layer(ids))
    down, up = torch.randn(2, 5), torch.randn(3, 2)
    expected = base.apply(base.weight() + up @ down, ids)
    assert torch.allclose(layer(ids) + base.apply_pointwise(up, base.apply(down, ids)), expected, atol=1e-5)
    base.add_(up @ down)
    assert torch.allclose(layer(ids), expected, atol=1e-5)


def test_a_subclass_that_takes_more_than_ids_runs_whole():
    layer, tokens = Positions(6, 3), torch.zeros(2, 3, dtype=torch.long)
    base = adapt(layer)
    assert not base.additive
    assert torch.equal(base.apply(base.weight(), tokens, start=2), layer(tokens, start=2))


def test_a_subclass_with_max_norm_keeps_the_weight():
    layer = Scaled(5, 3, max_norm=0.1)
    base, before = adapt(layer), layer.weight.detach().clone()
    output = base.forward(torch.arange(5))
    assert torch.equal(layer.weight, before)
    assert torch.allclose(output, layer(torch.arange(5)))
    assert not torch.equal(layer.weight, before)
