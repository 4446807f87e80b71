"""set_adapter and disable_adapter."""

import pytest
import torch

from peftcore import get_peft_model
from peftcore.exceptions import AdapterNameError, CompositionError

from .methods import METHODS, PlainConfig, ScaledConfig, TurnedConfig
from .models import Net, differs, same


@pytest.fixture
def model():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one", "two"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["one"]))
    model.add_adapter("c", ScaledConfig(target_modules=["two"]))
    return model


X = torch.linspace(-1, 1, 20).reshape(4, 5)


def trained_adapters(model):
    return {name for name in model.peft_config for p in model.base_model.tuner(name).parameters() if p.requires_grad}


def test_the_first_adapter_is_active_and_later_ones_are_not(model):
    assert model.active_adapters == ["a"]
    assert model.active_adapter == "a"
    assert model.active_peft_config is model.peft_config["a"]


@pytest.mark.parametrize("names", [["b"], ["a", "c"], ["c", "b", "a"], []], ids=repr)
def test_exactly_the_active_ones_train(model, names):
    model.set_adapter(names)
    assert trained_adapters(model) == set(names)
    parts = [p for name in names for p in model.base_model.tuner(name).parameters()]
    assert [id(p) for p in model.parameters() if p.requires_grad] == sorted(map(id, parts), key=_position(model))
    model(X).sum().backward() if names else None
    assert all(p.grad is not None for p in parts)


def _position(model):
    order = [id(p) for p in model.parameters()]
    return order.index


def test_the_order_given_is_the_order_in_which_they_act(model):
    model.set_adapter(["b", "a"])
    assert model.active_adapters == ["b", "a"]
    assert model.get_base_model().one.active_adapters == ["b", "a"]
    first = model(X)
    model.set_adapter(["a", "b"])
    differs(model(X), first)
    model.set_adapter(["a", "b", "a"])
    assert model.active_adapters == ["a", "b"]


def test_one_name_or_a_list_of_one(model):
    model.set_adapter("b")
    one = model(X)
    model.set_adapter(["b"])
    assert torch.equal(model(X), one)


def test_no_adapter_gives_the_frozen_model(model):
    with model.disable_adapter():
        frozen = model(X)
    model.set_adapter([])
    assert model.active_adapter == []
    assert torch.equal(model(X), frozen)
    with pytest.raises(AdapterNameError):
        _ = model.active_peft_config


@pytest.mark.parametrize("names", ["nobody", ["b", "nobody"]], ids=repr)
def test_an_unknown_name_changes_nothing(model, names):
    before = model(X)
    with pytest.raises(AdapterNameError, match=r"'nobody'.*'a', 'b', 'c'"):
        model.set_adapter(names)
    assert model.active_adapters == ["a"]
    assert trained_adapters(model) == {"a"}
    assert torch.equal(model(X), before)


def test_inference_mode_activates_without_training(model):
    model.set_adapter(["a", "b"], inference_mode=True)
    assert model.active_adapters == ["a", "b"]
    assert trained_adapters(model) == set()
    model.set_adapter("a")
    assert trained_adapters(model) == {"a"}


def test_a_config_for_inference_does_not_train():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"], inference_mode=True))
    assert trained_adapters(model) == set()
    assert model.active_adapters == ["default"]


def test_methods_that_stand_alone_are_not_combined(model, monkeypatch):
    turned = next(method for method in METHODS if method.name == "turned")
    object.__setattr__(turned, "is_mixed_compatible", False)
    monkeypatch.setattr(model.base_model.tuner("b"), "method", turned)
    try:
        with pytest.raises(CompositionError, match=r"'turned'.*plain"):
            model.set_adapter(["a", "b"])
        assert model.active_adapters == ["a"]
        model.set_adapter("b")
    finally:
        object.__setattr__(turned, "is_mixed_compatible", True)


# -------------------------------------------------------------------------------------------------- disabling


def test_disabled_gives_the_frozen_models_outputs():
    net = Net()
    frozen = net(X)
    model = get_peft_model(net, PlainConfig(target_modules=["one"], modules_to_save=["head"], bias="all"))
    differs(model(X), frozen)
    with model.disable_adapter():
        assert torch.equal(model(X), frozen)
        assert not model.get_model_status().enabled
    differs(model(X), frozen)
    assert model.get_model_status().enabled


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]], ids=repr)
def test_disabled_while_merged(names):
    net = Net()
    frozen = net(X)
    model = get_peft_model(net, PlainConfig(target_modules=["one", "two"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["one"]))
    model.add_adapter("c", ScaledConfig(target_modules=["two"]))
    model.set_adapter(names)
    expected = model(X)
    model.merge_adapter()
    with model.disable_adapter():
        same(model(X), frozen)
    assert model.get_model_status().merged_adapters == names
    same(model(X), expected)


def test_disabled_twice(model):
    expected = model(X)
    with model.disable_adapter():
        frozen = model(X)
        with model.disable_adapter():
            assert torch.equal(model(X), frozen)
        assert torch.equal(model(X), frozen)
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("merged", [False, True])
def test_an_exception_inside_switches_back_on(model, merged):
    expected = model(X)
    if merged:
        model.merge_adapter()
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    same(model(X), expected)
    assert model.get_model_status().enabled
    assert model.get_model_status().merged_adapters == (["a"] if merged else [])


def test_switching_while_disabled_counts_afterwards(model):
    model.set_adapter("b")
    expected = model(X)
    model.set_adapter("a")
    with model.disable_adapter():
        model.set_adapter("b")
    same(model(X), expected)


def test_disabled_wins_over_names_for_rows(model):
    with model.disable_adapter():
        frozen = model(X)
        assert torch.equal(model(X, adapter_names=["a", "b", "c", "__base__"]), frozen)


def test_gradients_reach_the_frozen_models_input_while_disabled(model):
    x = X.clone().requires_grad_()
    with model.disable_adapter():
        model(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())
