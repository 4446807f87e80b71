"""What is special about RoAd: its matrices, its groups, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import ConfigError, UnsupportedLayerError
from peftcore_road import RoadConfig


def matrix_by_hand(adapter, variant, size, out):
    """The paper's matrix, entry by entry."""
    theta, alpha = adapter.road_theta.tolist(), adapter.road_alpha.tolist()
    half, per_group = size // 2, {"road_1": 1, "road_2": 2, "road_4": 4}[variant]
    rows = {"road_1": (0, 0, 0, 0), "road_2": (0, 0, 1, 1), "road_4": (0, 2, 3, 1)}[variant]
    matrix = torch.zeros(out, out)
    for group in range(out // size):
        for pair in range(half):
            one, two = group * size + pair, group * size + half + pair
            at = [(group * per_group + row) * half + pair for row in rows]
            scaled = [(torch.tensor(theta[i]), alpha[i]) for i in at]
            matrix[one, one] = scaled[0][1] * scaled[0][0].cos()
            matrix[one, two] = -scaled[1][1] * scaled[1][0].sin()
            matrix[two, one] = scaled[2][1] * scaled[2][0].sin()
            matrix[two, two] = scaled[3][1] * scaled[3][0].cos()
    return matrix


def road(layer, **options):
    model = get_peft_model(nn.Sequential(layer), RoadConfig(target_modules=["0"], **options))
    return model, model.base_model.model[0].adapters["default"]


@settings(deadline=None)
@given(
    variant=st.sampled_from(["road_1", "road_2", "road_4"]),
    half=st.integers(1, 4),
    groups=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_it_multiplies_by_the_paper_s_matrix(variant, half, groups, seed):
    torch.manual_seed(seed)
    out = 2 * half * groups
    layer = nn.Linear(3, out)
    model, adapter = road(layer, variant=variant, group_size=2 * half, init_weights=False)
    x = torch.randn(4, 3)
    expected = layer(x) @ matrix_by_hand(adapter, variant, 2 * half, out).T
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(half=st.integers(1, 4), groups=st.integers(1, 3), seed=st.integers(0, 1000))
def test_a_rotation_that_is_not_scaled_keeps_lengths(half, groups, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(3, 2 * half * groups)
    model, adapter = road(layer, group_size=2 * half)
    with torch.no_grad():
        adapter.road_theta.copy_(torch.randn_like(adapter.road_theta) * 3)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x).norm(dim=-1), layer(x).norm(dim=-1))


def test_the_output_of_a_convolution_keeps_its_layout():
    model, _ = road(nn.Conv2d(3, 8, 3), group_size=4)
    assert model(torch.randn(2, 3, 7, 5)).is_contiguous()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("variant", "road_3", "road_1"),
        ("group_size", 0, "at least 2"),
        ("group_size", 7, "even"),
        ("group_size", 4.0, "int"),
        ("init_weights", 1, "bool"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value, why):
    with pytest.raises(ConfigError, match=rf"RoadConfig\.{field}: .*{why}"):
        RoadConfig(**{field: value})


@pytest.mark.parametrize("layer", [nn.Linear(4, 96), nn.Conv2d(4, 128, 1, groups=4), nn.Linear(4, 32)])
def test_groups_that_do_not_divide_a_layer_are_refused(layer):
    model = nn.Sequential(nn.Linear(4, 64), layer)
    with pytest.raises(ConfigError, match=rf"64 does not divide the \d+ outputs of .*{type(layer).__name__}"):
        get_peft_model(model, RoadConfig(target_modules=["0", "1"]))
    assert model[1] is layer and type(model[0]) is nn.Linear
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("size", [2, 4])
def test_pairs_within_a_convolution_s_group_can_be_merged(size):
    layer = nn.Conv2d(4, 8, 3, groups=2)
    model, _ = road(layer, group_size=size, init_weights=False)
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    model.merge_adapter()
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_layers_without_such_outputs_are_refused():
    with pytest.raises(UnsupportedLayerError, match="MultiheadAttention"):
        get_peft_model(nn.Sequential(nn.MultiheadAttention(4, 2)), RoadConfig(target_modules=["0"], group_size=2))
