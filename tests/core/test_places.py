"""Layers in unusual places: shared ones, bare parameters, keyword calls, frozen weights with a will of their own."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, get_peft_model_state_dict

from .methods import PlainConfig, ScaledConfig, TurnedConfig
from .models import Net, Single, anatomy, assert_as_before, differs, same, stir, without_gradient

X = torch.linspace(-1, 1, 20).reshape(4, 5)


# ------------------------------------------------------------------------------------- one module, two paths


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.block = nn.Sequential(nn.Tanh(), self.first)

    def forward(self, x):
        return self.block(self.first(x))


@pytest.mark.parametrize("saved", [False, True], ids=["adapted", "saved"])
def test_a_shared_module_is_adapted_once_at_all_its_places(saved):
    net = Shared()
    before, frozen = anatomy(net), net(X)
    config = PlainConfig(target_modules=[] if saved else ["first"], modules_to_save=["first"] if saved else None)
    model = stir(get_peft_model(net, config))
    assert net.first is net.block[1]
    assert type(net.first).__name__ == "AdaptedLayer"
    assert len(get_peft_model_state_dict(model)) == 2
    expected = model(X)
    differs(expected, frozen)
    if not saved:
        layer = net.first
        weight = layer.base_layer.weight + layer.adapters["default"].delta_weight()
        hidden = nn.functional.linear(X, weight, layer.base_layer.bias)
        same(expected, nn.functional.linear(torch.tanh(hidden), weight, layer.base_layer.bias))
    model.delete_adapter("default")
    assert_as_before(net, before)


def test_a_shared_module_merged_for_good():
    net = Shared()
    model = get_peft_model(net, TurnedConfig(target_modules=["first"], modules_to_save=None))
    expected = model(X)
    same(model.merge_and_unload()(X), expected)
    assert net.first is net.block[1]


def test_a_saved_shared_module_is_settled_at_all_its_places():
    net = Shared()
    model = stir(get_peft_model(net, PlainConfig(target_modules=[], modules_to_save=["first"])))
    expected = model(X)
    same(model.merge_and_unload()(X), expected)
    assert net.first is net.block[1]
    assert type(net.first) is nn.Linear


# --------------------------------------------------------------------------------------------- keyword calls


class Keywords(Net):
    def forward(self, x):
        return self.head(input=torch.tanh(self.two(input=torch.tanh(self.one(input=x)))))


@pytest.mark.parametrize("config", [PlainConfig, ScaledConfig], ids=["plain", "scaled"])
def test_layers_called_with_keywords(config):
    net = Keywords()
    frozen = net(X)
    model = get_peft_model(net, config(target_modules=["one", "two"]))
    expected = model(X)
    differs(expected, frozen)
    mixed = model(X, adapter_names=["default", "__base__"] * 2)
    same(mixed, torch.stack([expected[0], frozen[1], expected[2], frozen[3]]))
    model.merge_adapter()
    same(model(X), expected)


def test_an_embedding_with_max_norm_keeps_its_frozen_weight():
    """torch renormalises the stored rows in passing, which would move the frozen weight."""
    net = Single(nn.Embedding(9, 4, max_norm=0.5))
    frozen = net.layer.weight.detach().clone()
    ids = torch.tensor([[0, 3], [8, 1]])
    model = get_peft_model(net, PlainConfig(target_modules=["layer"]))
    model(ids)
    with model.disable_adapter():
        model(ids)
    model(ids, adapter_names=["__base__", "default"])
    model.set_adapter([])
    model(ids)
    assert torch.equal(net.layer.base_layer.weight, frozen)


# ------------------------------------------------------------------------------------------- bare parameters


class Experts(nn.Module):
    """Stacked experts: two parameters of one module, used without a layer around them."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 5))
        self.down = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x):
        hidden = torch.tanh(torch.einsum("bi,eoi->beo", x, self.up))
        return torch.einsum("beo,epo->bp", hidden, self.down)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(self.experts(x))


BOTH = {"target_modules": ["lin"], "target_parameters": ["experts.up", "experts.down"]}


def reference(net, *names):
    """The experts' output with the parameters that act, written out."""
    weights = {}
    for layer in (net.experts, net.experts.base_layer):
        weight = layer.base.weight()
        weights[layer.base.parameter_name] = weight + sum(layer.adapters[name].delta_weight() for name in names)
    hidden = torch.tanh(torch.einsum("bi,eoi->beo", X, weights["up"]))
    return torch.einsum("beo,epo->bp", hidden, weights["down"])


def test_stacked_experts_two_adapters_each():
    net = Mixture()
    before = anatomy(net)
    model = get_peft_model(net, PlainConfig(**BOTH), "a")
    model.add_adapter("b", ScaledConfig(target_modules=["lin"]))
    model.add_adapter("c", PlainConfig(r=1, **BOTH))
    same(net.experts(X), reference(net, "a"))
    model.set_adapter(["a", "c"])
    same(net.experts(X), reference(net, "a", "c"))
    model(X).square().sum().backward()
    assert without_gradient(model) == []
    expected = model(X)
    model.merge_adapter()
    same(model(X), expected)
    model.unmerge_adapter()
    same(model(X), expected)
    for name in "abc":
        model.delete_adapter(name)
    assert_as_before(net, before, exact=False)


def test_stacked_experts_in_a_mixed_batch():
    net = Mixture()
    model = get_peft_model(net, PlainConfig(**BOTH), "a")
    model.add_adapter("b", PlainConfig(target_parameters=["experts.down"]))
    a = model(X)
    with model.disable_adapter():
        frozen = model(X)
    model.set_adapter("b")
    b = model(X)
    same(model(X, adapter_names=["a", "b", "__base__", "b"]), torch.stack([a[0], b[1], frozen[2], b[3]]))


def test_stacked_experts_are_saved_as_their_module_nests():
    model = get_peft_model(Mixture(), PlainConfig(target_parameters=["experts.up", "experts.down"]))
    keys = {key.removeprefix("base_model.model.") for key in get_peft_model_state_dict(model)}
    assert {key.rpartition(".")[0] for key in keys} == {"experts", "experts.base_layer"}
    assert len(keys) == 4
