"""canonical_modules: an adapter for each part of a fused projection."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import ConfigError, TargetError

from .methods import PlainConfig, ScaledConfig, ShiftedConfig, TurnedConfig
from .models import Net, differs, same, stir, without_gradient


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        return self.qkv(x)


X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
EQUAL = {"qkv": ["q", "k", "v"]}
UNEQUAL = {"qkv": {"q": 4, "k": 1, "v": 1}}
GROUPED = {"qkv": {"parts": ["q", "k", "v"], "groups": 2}}
ROWS = {
    "equal": (EQUAL, {"q": range(4), "k": range(4, 8), "v": range(8, 12)}),
    "unequal": (UNEQUAL, {"q": range(8), "k": range(8, 10), "v": range(10, 12)}),
    "grouped": (GROUPED, {"q": [0, 1, 6, 7], "k": [2, 3, 8, 9], "v": [4, 5, 10, 11]}),
}
CONFIGS = [PlainConfig, ScaledConfig, ShiftedConfig]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("parts", "rows"), ROWS.values(), ids=ROWS)
def test_each_part_changes_its_own_rows(config, parts, rows):
    net = Fused()
    frozen, weight = net(X), net.qkv.weight.detach().clone()
    model = get_peft_model(net, config(target_modules=["q", "v"], canonical_modules=parts))
    change = model(X) - frozen
    assert not change[..., list(rows["k"])].any()
    assert change[..., list(rows["q"])].any() and change[..., list(rows["v"])].any()
    expected = model(X)
    model.merge_adapter()
    same(model(X), expected)
    assert torch.equal(net.qkv.base_layer.weight[list(rows["k"])], weight[list(rows["k"])])
    model.unmerge_adapter()
    same(net.qkv.base_layer.weight, weight)
    same(model(X), expected)
    mixed = model(X, adapter_names=["__base__", "default"])
    same(mixed, torch.stack([frozen[0], expected[1]]))


def test_each_part_has_its_own_rank():
    config = PlainConfig(target_modules=["q", "k", "v"], canonical_modules=UNEQUAL, r=3, rank_pattern={"k": 1})
    model = get_peft_model(Fused(), config)
    shapes = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(model).items()}
    prefix = "base_model.model.qkv."
    assert shapes == {
        f"{prefix}q.plain_A": (3, 4),
        f"{prefix}q.plain_B": (8, 3),
        f"{prefix}k.plain_A": (1, 4),
        f"{prefix}k.plain_B": (2, 1),
        f"{prefix}v.plain_A": (3, 4),
        f"{prefix}v.plain_B": (2, 3),
    }
    model(X).square().sum().backward()
    assert without_gradient(model) == []


def test_it_goes_into_a_file_and_back(tmp_path):
    net = Fused()
    values = {name: value.clone() for name, value in net.state_dict().items()}
    config = PlainConfig(target_modules=["q", "v"], canonical_modules=GROUPED, rank_pattern={"v": 1})
    model = stir(get_peft_model(net, config))
    model.save_pretrained(tmp_path)
    fresh = Fused()
    fresh.load_state_dict(values)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    assert loaded.peft_config["default"].canonical_modules == GROUPED
    same(loaded(X), model(X))
    same(loaded.merge_and_unload()(X), model(X))


def test_it_goes_with_other_adapters():
    net = Fused()
    model = get_peft_model(net, PlainConfig(target_modules=["q"], canonical_modules=EQUAL), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["qkv"]))
    model.set_adapter(["a", "b"])
    expected = model(X)
    model.merge_adapter()
    same(model(X), expected)
    model.delete_adapter("b")
    model.delete_adapter("a")
    assert type(net.qkv) is nn.Linear


def test_a_transform_can_not_stand_on_a_part():
    net = Fused()
    with pytest.raises(ConfigError, match="'q'"):
        get_peft_model(net, TurnedConfig(target_modules=["q"], canonical_modules=EQUAL))
    assert type(net.qkv) is nn.Linear


def test_rows_that_can_not_be_shared_out():
    with pytest.raises(TargetError, match=r"12 outputs.*5"):
        get_peft_model(Fused(), PlainConfig(target_modules=["a"], canonical_modules={"qkv": list("abcde")}))


def test_the_whole_layer_and_its_part_are_not_the_same_wish():
    whole = get_peft_model(Fused(), PlainConfig(target_modules=["qkv"], canonical_modules=EQUAL))
    assert list(get_peft_model_state_dict(whole)) == ["base_model.model.qkv.plain_A", "base_model.model.qkv.plain_B"]


def test_other_layers_are_adapted_as_ever():
    class Both(Net):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(5, 15)

    model = get_peft_model(Both(), PlainConfig(target_modules=["one", "v"], canonical_modules=EQUAL))
    keys = list(get_peft_model_state_dict(model))
    assert [key.rpartition(".")[0] for key in keys[::2]] == ["base_model.model.one", "base_model.model.qkv.v"]
    x = torch.randn(4, 5)
    with model.disable_adapter():
        frozen = model(x)
    differs(model(x), frozen)
