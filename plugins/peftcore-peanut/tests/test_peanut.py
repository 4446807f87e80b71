"""The mathematics, and what is refused."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_peanut import PeanutAdapter, PeanutConfig


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return PeanutAdapter(base, PeanutConfig(**{"r": 3, "init_weights": False, "act_fn": "tanh", **options}))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 4)], ids=repr
)
def test_each_column_of_the_weight_goes_through_the_network(layer):
    adapter = make(layer, depth=2, scaling=1.5)
    state = adapter.state_dict()
    delta = adapter.canonical_delta().reshape(adapter.base.matrix_shape)
    for column, change in zip(adapter.base.weight().reshape(delta.shape).T, delta.T, strict=True):
        start = (state["peanut_A.weight"] @ column).tanh()
        middle = (state["peanut_encoders.0.weight"] @ start).tanh()
        end = (state["peanut_encoders.1.weight"] @ middle).tanh()
        back = (state["peanut_decoders.0.weight"] @ end).tanh() + middle
        back = (state["peanut_decoders.1.weight"] @ back).tanh() + start
        torch.testing.assert_close(change, 1.5 * state["peanut_B.weight"] @ back)


def test_without_depth_the_network_is_one_activation():
    adapter = make(nn.Linear(6, 4), act_fn="relu")
    assert set(adapter.state_dict()) == {"peanut_A.weight", "peanut_B.weight"}
    expected = adapter.peanut_B["weight"] @ (adapter.peanut_A["weight"] @ adapter.base.weight()).relu()
    torch.testing.assert_close(adapter.canonical_delta(), expected)


def test_each_stacked_expert_has_a_network_of_its_own():
    holder = Holder(3, 6, 4)
    adapter, alone = make(ParameterLayer(holder, "weight"), depth=1), make(nn.Linear(4, 6), depth=1)
    for expert in range(3):
        with torch.no_grad():
            alone.base.layer.weight.copy_(holder.weight[expert])
            for name, parameter in alone.named_parameters():
                parameter.copy_(adapter.get_parameter(name)[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


def test_the_network_sees_the_frozen_weight_while_others_are_merged():
    x, config = torch.randn(3, 6), PeanutConfig(r=2, act_fn="tanh", target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(6, 4)), config).eval()
    model.add_adapter("other", config)
    for seed, name in enumerate(("default", "other")):
        perturb(model, name, seed=seed)
    model.set_adapter("other")
    alone = model(x)
    model.set_adapter("default")
    model.merge_adapter()
    model.unmerge_adapter()
    model.set_adapter("other")
    torch.testing.assert_close(model(x), alone)
    model.set_adapter(["default", "other"])
    both = model(x)
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(x), both)


def test_a_rank_above_both_sizes_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(6, 4))
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"PeanutConfig\.r: 7 is above both sizes"):
        get_peft_model(model, PeanutConfig(r=7, target_modules=["0", "1"]))
    before.assert_same(model, "After a config was refused", "")


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": 2.0},
        {"depth": -1},
        {"depth": 1.0},
        {"act_fn": "parabola"},
        {"act_fn": "prelu"},
        {"act_fn": None},
        {"scaling": "1"},
        {"init_weights": "zero"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"PeanutConfig\.{next(iter(options))}: "):
        PeanutConfig(**options)
