"""Convolutions: every geometry that torch has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.base_layers import adapt
from peftcore.exceptions import UnsupportedLayerError

CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MODES = ("zeros", "reflect", "circular", "replicate")


@st.composite
def convolutions(draw, separable=False):
    """A convolution, and an input with or without a batch dimension."""
    dims = 2 if separable else draw(st.integers(1, 3))

    def sizes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, dilation, groups = sizes(1, 3), sizes(1, 2), 1 if separable else draw(st.sampled_from([1, 2, 4]))
    padding = sizes(0, 2) if separable else draw(st.sampled_from(["same", "valid", sizes(0, 2)]))
    layer = CLASSES[dims - 1](
        4,
        draw(st.sampled_from([4, 8])),
        kernel,
        stride=1 if padding == "same" else sizes(1, 2),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode="zeros" if separable else draw(st.sampled_from(MODES)),
    )
    spatial = [5 + draw(st.integers(0, 2)) for _ in range(dims)]
    return layer, torch.randn(*draw(st.sampled_from([(), (1,), (2,)])), 4, *spatial)


@settings(deadline=None, max_examples=300)
@given(convolutions())
def test_the_layer_with_its_own_weight_is_the_layer(case):
    layer, x = case
    base = adapt(layer)
    output = base.apply(base.weight(), x)
    if layer.bias is not None:
        output = base.add_bias(output, layer.bias)
    assert torch.allclose(output, layer(x), atol=1e-5)


@settings(deadline=None, max_examples=200)
@given(convolutions())
def test_low_rank_factors_in_every_geometry(case):
    layer, x = case
    base = adapt(layer)
    rank = 2 * layer.groups
    down, up = torch.randn(rank, *base.weight_shape[1:]), torch.randn(base.out_features, 2)
    by_group = zip(up.chunk(layer.groups), down.chunk(layer.groups), strict=True)
    product = torch.cat([torch.einsum("or,r...->o...", u, d) for u, d in by_group])
    output = base.apply_pointwise(up, base.apply(down, x))
    assert torch.allclose(output, base.apply(product, x), atol=1e-4)


@settings(deadline=None, max_examples=200)
@given(convolutions(separable=True), st.integers(1, 5))
def test_two_stripes_equal_the_dense_weight(case, rank):
    layer, x = case
    base = adapt(layer)
    assert base.can_separate
    height, width = base.kernel_size
    rows, columns = torch.randn(rank, 4, 1, width), torch.randn(base.out_features, rank, height, 1)
    dense = torch.einsum("orh,riw->oihw", columns[..., 0], rows[:, :, 0])
    assert torch.allclose(base.apply_separable(rows, columns, x), base.apply(dense, x), atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding="valid"),
        *(nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode) for mode in MODES[1:]),
    ],
    ids=str,
)
def test_geometries_that_can_not_be_split(layer):
    base = adapt(layer)
    assert not base.can_separate
    with pytest.raises(UnsupportedLayerError, match="dense weight"):
        base.apply_separable(torch.zeros(1, 4, 1, 3), torch.zeros(4, 1, 3, 1), torch.zeros(1, 4, 5, 5))


class PaddedToFit(nn.Conv2d):
    """Pads so that the output has the input's size divided by the stride, whatever the input."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x):
        pad = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (x.shape[-1], x.shape[-2])]
        x = nn.functional.pad(x, [pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2])
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride)


@pytest.mark.parametrize("size", [5, 6])
def test_a_subclass_keeps_its_own_forward(size):
    layer = PaddedToFit(4)
    base, x = adapt(layer), torch.randn(2, 4, size, size)
    assert not base.can_separate
    assert torch.allclose(base.add_bias(base.apply(base.weight(), x), layer.bias), layer(x), atol=1e-6)
    down, up = torch.randn(2, 4, 3, 3), torch.randn(4, 2)
    output = base.apply_pointwise(up, base.apply(down, x))
    assert torch.allclose(output, base.apply(torch.einsum("or,rihw->oihw", up, down), x), atol=1e-4)


def test_a_subclass_that_only_convolves_otherwise_keeps_that():
    class Doubled(nn.Conv1d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(2 * input, weight, bias)

    layer, x = Doubled(2, 3, 1), torch.randn(1, 2, 4)
    base = adapt(layer)
    assert torch.allclose(base.add_bias(base.apply(base.weight(), x), layer.bias), layer(x), atol=1e-6)
