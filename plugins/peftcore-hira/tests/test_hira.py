"""HiRA's own mathematics, and what it refuses."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_hira import HiraConfig


def adapted(layer, **options):
    model = get_peft_model(nn.Sequential(layer), HiraConfig(**{"r": 2, "target_modules": ["0"], **options}))
    perturb(model)
    return model


def test_the_rank_of_delta_is_that_of_the_weight_times_r():
    torch.manual_seed(0)
    layer = nn.Linear(20, 20, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(20, 3).double() @ torch.randn(3, 20).double())
    delta = adapted(layer, r=4).base_model.model[0].adapters["default"].delta_weight()
    assert torch.linalg.matrix_rank(delta.detach()) == 12


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_s_kernel_is_multiplied_entry_by_entry(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, (3, 2), groups=groups)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach()
    model = adapted(layer)
    adapter = model.base_model.model[0].adapters["default"]
    product = torch.einsum("orhw,rikl->oikl", adapter.hira_B, adapter.hira_A)
    x = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(model(x), nn.functional.conv2d(x, weight * (1 + product), bias, groups=groups))


def test_each_expert_has_factors_of_its_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.stacked = nn.Parameter(torch.randn(3, 6, 5))

        def forward(self, x):
            return torch.einsum("eoi,bi->beo", self.stacked, x)

    experts = Experts()
    frozen = experts.stacked.detach().clone()
    model = get_peft_model(nn.Sequential(experts), HiraConfig(r=2, target_parameters=["0.stacked"]))
    perturb(model)
    adapter = model.base_model.model[0].adapters["default"]
    assert (adapter.hira_A.shape, adapter.hira_B.shape) == ((3, 2, 5), (3, 6, 2))
    x = torch.randn(4, 5)
    changed = torch.stack([frozen[e] * (1 + adapter.hira_B[e] @ adapter.hira_A[e]) for e in range(3)])
    torch.testing.assert_close(model(x), torch.einsum("eoi,bi->beo", changed, x))


def test_what_is_merged_beside_it_does_not_change_its_delta():
    torch.manual_seed(0)
    model = adapted(nn.Linear(6, 5))
    model.add_adapter("other", HiraConfig(r=3, target_modules=["0"]))
    perturb(model, "other", seed=1)
    adapter = model.base_model.model[0].adapters["other"]
    before = adapter.delta_weight().detach()
    model.merge_adapter(["default"])
    torch.testing.assert_close(adapter.delta_weight().detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", "32"),
        ("r", True),
        ("hira_dropout", 1.0),
        ("hira_dropout", -0.5),
        ("init_weights", "orthogonal"),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": "4"}),
        ("fan_in_fan_out", None),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"HiraConfig.{field}"):
        HiraConfig(**{field: value})


@pytest.mark.parametrize(
    ("layer", "options", "field"),
    [
        (nn.Linear(6, 4), {"r": 7}, "r"),
        (nn.Conv2d(2, 4, 3, groups=2), {"r": 10}, "r"),
        (nn.Linear(6, 4), {"rank_pattern": {"0": 7}}, "r"),
        (nn.MultiheadAttention(8, 2), {"hira_dropout": 0.1}, "hira_dropout"),
    ],
)
def test_what_does_not_go_with_a_layer_is_refused_and_nothing_has_changed(layer, options, field):
    model = nn.Sequential(layer)
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=rf"HiraConfig.{field}: .*{type(layer).__name__}"):
        get_peft_model(model, HiraConfig(**{"r": 2, "target_modules": ["0"], **options}))
    before.assert_same(model, "After a config was refused", "")
