"""The mathematics, and what is refused."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_delora import DeloraAdapter, DeloraConfig


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return DeloraAdapter(base, DeloraConfig(**{"r": 3, "init_weights": False, **options}))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 4)], ids=repr
)
def test_delta_is_a_sum_of_directions_times_the_lengths_of_the_columns(layer):
    adapter = make(layer, delora_lambda=6)
    out, into = adapter.base.matrix_shape
    a, b, expected = adapter.delora_A, adapter.delora_B, torch.zeros(out, into)
    for i in range(3):
        expected = expected + 6 / 3 * torch.outer(b[:, i] / b[:, i].norm(), a[i] / a[i].norm())
    expected = expected * adapter.base.weight().reshape(out, into).norm(dim=0)
    torch.testing.assert_close(adapter.canonical_delta().reshape(out, into), expected)


@pytest.mark.parametrize("factor", [0.01, 1000])
def test_lambda_bounds_how_far_the_weight_moves_whatever_is_trained(factor):
    adapter = make(nn.Linear(20, 20), r=8, delora_lambda=5)
    before = adapter.canonical_delta() / adapter.delora_w_norm
    assert 1 < before.norm() <= 5
    with torch.no_grad():
        for direction in (adapter.delora_A, adapter.delora_B):
            direction.mul_(factor)
    torch.testing.assert_close(adapter.canonical_delta() / adapter.delora_w_norm, before)


def test_it_starts_as_the_frozen_layer_with_finite_gradients():
    adapter = make(nn.Linear(6, 4), init_weights=True)
    assert not adapter.canonical_delta().any()
    adapter.delta_forward(torch.randn(2, 6)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())
    assert adapter.delora_B.grad.any()


def test_each_stacked_expert_has_factors_and_a_bound_of_its_own():
    holder = Holder(3, 5, 7)
    adapter = make(ParameterLayer(holder, "weight"))
    with torch.no_grad():
        adapter.delora_lambda.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    alone = make(nn.Linear(7, 5))
    for expert in range(3):
        with torch.no_grad():
            alone.delora_w_norm.copy_(holder.weight[expert].norm(dim=0))
            for name, parameter in alone.named_parameters():
                parameter.copy_(adapter.get_parameter(name)[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


def test_lengths_are_the_file_s(tmp_path):
    """What was trained is relative to the weight that it was trained on."""
    x, config = torch.randn(3, 6), DeloraConfig(r=2, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(6, 4)), config).eval()
    perturb(model)
    layer = model.get_base_model()[0]
    torch.testing.assert_close(layer.adapters["default"].delora_w_norm, layer.base_layer.weight.norm(dim=0))
    model.save_pretrained(tmp_path)
    other = nn.Sequential(nn.Linear(6, 4))
    expected = other(x) + model(x) - layer.base_layer(x)
    torch.testing.assert_close(PeftModel.from_pretrained(other, tmp_path).eval()(x), expected)


@pytest.mark.parametrize(
    ("layer", "options", "says"),
    [
        (nn.Linear(6, 4), {"r": 7}, r"r: 7 is above both sizes .*rank_pattern"),
        (nn.MultiheadAttention(8, 2), {"r": 2, "module_dropout": 0.1}, "module_dropout: acts on the input"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused_before_anything_changes(layer, options, says):
    model = nn.ModuleDict({"first": nn.Linear(12, 12), "layer": layer})
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=rf"DeloraConfig\.{says}"):
        get_peft_model(model, DeloraConfig(target_modules=["first", "layer"], **options))
    before.assert_same(model, "After a config was refused", "")


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": 2.0},
        {"delora_lambda": -1},
        {"delora_lambda": "15"},
        {"module_dropout": 1.0},
        {"rank_pattern": {"0": 0}},
        {"lambda_pattern": {"0": -1}},
        {"init_weights": "zero"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"DeloraConfig\.{next(iter(options))}: "):
        DeloraConfig(**options)
