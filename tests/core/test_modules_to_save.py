"""modules_to_save: whole modules trained as copies."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import MergeError, TargetError

from .methods import PlainConfig
from .models import Net, anatomy, assert_as_before, differs, same, stir, without_gradient

X = torch.linspace(-1, 1, 20).reshape(4, 5)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, features):
        return self.out(torch.tanh(self.dense(features)))


class Classifier(nn.Module):
    """A body whose layer is called as one in the head is, and a head that is called with a keyword."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(5, 6)
        self.head = Head()

    def forward(self, x):
        return self.head(features=torch.tanh(self.dense(x)))


def test_the_copy_trains_and_the_original_stays():
    net = Net()
    original = net.head
    weight = original.weight.clone()
    model = get_peft_model(net, PlainConfig(target_modules=["one"], modules_to_save=["head"]))
    with model.disable_adapter():
        frozen = model(X)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    model(X).square().sum().backward()
    assert without_gradient(model) == []
    optimizer.step()
    assert torch.equal(original.weight, weight)
    assert original.weight.grad is None
    differs(net.head.parts("default")[0].module.weight, weight)
    with model.disable_adapter():
        assert torch.equal(model(X), frozen)


def test_the_file_holds_it_under_the_modules_own_name():
    model = stir(get_peft_model(Net(), PlainConfig(target_modules=["one"], modules_to_save=["head"])))
    state = get_peft_model_state_dict(model)
    copy = model.get_base_model().head.parts("default")[0].module
    assert torch.equal(state["base_model.model.head.weight"], copy.weight)
    assert torch.equal(state["base_model.model.head.bias"], copy.bias)


def test_two_adapters_have_a_copy_each():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"], modules_to_save=["head"]), "a")
    model.add_adapter("b", PlainConfig(target_modules=["one"], modules_to_save=["head"]))
    stir(model, "a", "b")
    a = model(X)
    model.set_adapter("b")
    b = model(X)
    differs(a, b)
    with model.disable_adapter():
        frozen = model(X)
    mixed = model(X, adapter_names=["a", "b", "__base__", "a"])
    same(mixed, torch.stack([a[0], b[1], frozen[2], a[3]]))
    assert all(not p.requires_grad for p in model.base_model.tuner("a").parameters())


def test_a_module_called_with_keywords():
    config = PlainConfig(target_modules=["dense"], exclude_modules=["head.dense"], modules_to_save=["head"])
    model = stir(get_peft_model(Classifier(), config))
    expected = model(X)
    with model.disable_adapter():
        frozen = model(X)
    mixed = model(X, adapter_names=["default", "__base__"] * 2)
    same(mixed, torch.stack([expected[0], frozen[1], expected[2], frozen[3]]))


def test_what_is_named_twice_is_saved_as_it_acts():
    """A name of the list may lie within another: the whole module's copy is the one that acts."""
    config = PlainConfig(target_modules=["dense"], exclude_modules=["head.dense"], modules_to_save=["head", "out"])
    model = stir(get_peft_model(Classifier(), config))
    model(X).square().sum().backward()
    assert without_gradient(model) == []
    again = get_peft_model(Classifier(), config)
    frozen = model.get_base_model().dense.base_layer.state_dict()
    again.get_base_model().dense.base_layer.load_state_dict(frozen)
    set_peft_model_state_dict(again, get_peft_model_state_dict(model))
    same(again(X), model(X))


def test_a_target_inside_a_saved_module_trains_or_is_left_out():
    model = get_peft_model(Classifier(), PlainConfig(target_modules=["dense"], modules_to_save=["head"]))
    model(X).square().sum().backward()
    assert without_gradient(model) == []


def test_the_copy_is_free_of_other_adapters():
    model = get_peft_model(Classifier(), PlainConfig(target_modules=["dense", "out"]), "a")
    model.add_adapter(
        "b", PlainConfig(target_modules=["dense"], exclude_modules=["head.dense"], modules_to_save=["head"])
    )
    copy = model.get_base_model().head.parts("b")[0].module
    assert [type(module) for module in copy.modules()] == [Head, nn.Linear, nn.Linear]
    stir(model, "a", "b")
    a = model(X)
    model.set_adapter("b")
    b = model(X)
    same(model(X, adapter_names=["a", "b", "b", "a"]), torch.stack([a[0], b[1], b[2], a[3]]))
    model.delete_adapter("b")
    same(model(X), a)


def test_it_goes_into_a_file_and_back(tmp_path):
    net = Net()
    values = {name: value.clone() for name, value in net.state_dict().items()}
    model = stir(get_peft_model(net, PlainConfig(target_modules=["one"], modules_to_save=["head"])))
    model.save_pretrained(tmp_path)
    fresh = Net()
    fresh.load_state_dict(values)
    same(PeftModel.from_pretrained(fresh, tmp_path)(X), model(X))


@pytest.mark.parametrize("training", [True, False])
def test_the_copy_is_in_the_models_mode(training):
    net = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)).train(training)
    model = get_peft_model(net, PlainConfig(target_modules=["0"], modules_to_save=["1"]))
    parts = [part for layer in model.base_model.layers() for part in layer.parts("default")]
    assert len(parts) == 2
    assert all(module.training is training for part in parts for module in part.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_a_module_with_buffers_keeps_them_in_its_copy():
    net = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    model = get_peft_model(net, PlainConfig(target_modules=["0"], modules_to_save=["1"]))
    model(X)
    assert "base_model.model.1.running_mean" in get_peft_model_state_dict(model)
    assert not net[1].base_layer.running_mean.any()
    assert net[1].parts("default")[0].module.running_mean.any()


def test_a_module_that_is_not_there_is_named_with_its_neighbours():
    net = Net()
    before = anatomy(net)
    with pytest.raises(TargetError, match=r"'haed'.*head"):
        get_peft_model(net, PlainConfig(target_modules=["one"], modules_to_save=["haed"]))
    assert_as_before(net, before)
    with pytest.warns(UserWarning, match="haed"):
        get_peft_model(net, PlainConfig(target_modules=["one"], modules_to_save=["haed"]), on_unmatched="warn")


def test_safe_merge_looks_at_copies_too():
    net = Net()
    model = get_peft_model(net, PlainConfig(target_modules=["one"], modules_to_save=["head"]))
    values = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.head.auxiliary["default"].module.bias[0] = float("nan")
    with pytest.raises(MergeError, match=r"module\.bias in the trained copy of a Linear"):
        model.merge_adapter(safe_merge=True)
    assert model.get_model_status().merged_adapters == []
    same(net.one.base_layer.weight, values["one.base_layer.weight"])
