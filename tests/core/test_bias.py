"""bias=: which biases train beside the adapter."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import ConfigError

from .methods import PlainConfig
from .models import differs, same, stir, without_gradient


class Biases(nn.Module):
    """Layers of many kinds with a bias, and two without."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.batch = nn.BatchNorm1d(4)
        self.lin = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.flat = nn.Linear(4, 4, bias=False)
        self.bare = nn.LayerNorm(4, elementwise_affine=False)
        self.other = nn.Linear(4, 2)

    def forward(self, x):
        x = self.batch(self.conv(x)).transpose(1, 2)
        return self.other(self.bare(self.flat(self.norm(self.lin(x)))))


TARGETS = ["conv", "lin", "flat"]
ADAPTED = {"conv.base_layer.bias", "lin.base_layer.bias"}
ALL = ADAPTED | {"batch.bias", "norm.bias", "other.bias"}
X = torch.linspace(-1, 1, 60).reshape(4, 3, 5)


def biases_in_file(model):
    prefix = "base_model.model."
    return {name.removeprefix(prefix) for name in get_peft_model_state_dict(model) if name.endswith("bias")}


@pytest.mark.parametrize(("bias", "names"), [("none", set()), ("plain_only", ADAPTED), ("all", ALL)])
def test_which_biases_train(bias, names):
    model = get_peft_model(Biases().eval(), PlainConfig(target_modules=TARGETS, bias=bias))
    assert biases_in_file(model) == names
    model(X).square().sum().backward()
    assert without_gradient(model) == []
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "plain_" not in n]
    assert len(trained) == len(names)


@pytest.mark.parametrize("bias", ["plain_only", "all"])
def test_they_start_where_the_frozen_ones_are_and_act_in_their_place(bias):
    net = Biases().eval()
    names = ALL if bias == "all" else ADAPTED
    model = get_peft_model(net, PlainConfig(target_modules=TARGETS, bias=bias))
    trained = get_peft_model_state_dict(model)
    frozen = {name.replace("base_layer.", ""): net.get_submodule(name.rpartition(".")[0]).bias for name in names}
    for name in names:
        assert torch.equal(trained[f"base_model.model.{name}"], frozen[name.replace("base_layer.", "")])
    before = model(X)
    stir(model)
    expected = model(X)
    differs(expected, before)
    for name in names:  # written into the frozen layers, they give the same
        module = net.get_submodule(name.rpartition(".")[0].replace(".base_layer", "")).base_layer
        with torch.no_grad():
            module.bias.copy_(get_peft_model_state_dict(model)[f"base_model.model.{name}"])
    same(model(X), expected)


@pytest.mark.parametrize("bias", ["plain_only", "all"])
def test_merged_disabled_and_mixed(bias):
    net = Biases().eval()
    frozen = net(X)
    model = stir(get_peft_model(net, PlainConfig(target_modules=TARGETS, bias=bias)))
    expected = model(X)
    with model.disable_adapter():
        same(model(X), frozen)
    same(model(X, adapter_names=["default", "__base__"] * 2)[:2], torch.stack([expected[0], frozen[1]]))
    model.merge_adapter()
    same(model(X), expected)
    with model.disable_adapter():
        same(model(X), frozen)
    model.unmerge_adapter()
    same(model(X), expected)
    same(model.merge_and_unload()(X), expected)


def test_two_adapters_train_the_biases_of_the_same_layers():
    model = get_peft_model(Biases().eval(), PlainConfig(target_modules=TARGETS, bias="plain_only"), "a")
    model.add_adapter("b", PlainConfig(target_modules=TARGETS, bias="plain_only"))
    stir(model, "a", "b")
    model.set_adapter(["a", "b"])
    both = model(X)
    model.merge_adapter(["a"])
    same(model(X), both)
    model.merge_adapter()
    same(model(X), both)


def test_biases_of_saved_modules_are_theirs():
    model = get_peft_model(Biases(), PlainConfig(target_modules=["lin"], bias="all", modules_to_save=["other"]))
    assert type(model.get_base_model().other.parts("default")[0]).__name__ == "ModuleCopy"
    assert len(model.get_base_model().other.parts("default")) == 1


def test_layers_that_have_none_are_passed_over():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    model = get_peft_model(net, PlainConfig(target_modules=["0", "1"], bias="all"))
    assert biases_in_file(model) == {"1.base_layer.bias"}


def test_other_words_are_refused():
    with pytest.raises(ConfigError, match="none, all, plain_only"):
        PlainConfig(bias="scaled_only")


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.att = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.lin(x)
        return self.att(x, x, x)[0]


def test_the_biases_of_an_attention_act():
    """Its output projection is read by the attention and never called."""
    x = torch.randn(2, 3, 4)
    model = get_peft_model(Attends(), PlainConfig(target_modules=["lin"], bias="all"))
    model(x).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    before = model(x)
    with torch.no_grad():
        model.get_base_model().att.out_proj.parts("default")[0].bias.add_(1.0)
    same(model(x), before + 1.0)
