"""delete_adapter, unload and merge_and_unload: what stays is the user's model."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import AdapterNameError

from .methods import BankedConfig, PlainConfig, ScaledConfig, TurnedConfig
from .models import Net, Words, anatomy, assert_as_before, differs, same, stir

X = torch.linspace(-1, 1, 20).reshape(4, 5)
IDS = torch.arange(8).reshape(2, 4)

EVERYTHING = {
    "a delta": PlainConfig(target_modules=["lin", "emb"]),
    "a transform": TurnedConfig(target_modules=["lin"]),
    "shared state": BankedConfig(target_modules=["lin", "head"]),
    "a saved module": PlainConfig(target_modules=["emb"], modules_to_save=["head", "lin"]),
    "biases": PlainConfig(target_modules=["lin"], bias="all"),
    "tokens": PlainConfig(target_modules=["lin"], trainable_token_indices={"emb": [1, 4]}),
}


@pytest.fixture(params=EVERYTHING.values(), ids=EVERYTHING)
def adapted(request):
    words = Words(head_bias=True)
    words.lin.bias.requires_grad_(False)
    before = anatomy(words)
    return stir(get_peft_model(words, request.param)), words, before


@pytest.mark.parametrize("merged", [False, True], ids=["", "merged"])
@pytest.mark.parametrize("how", ["delete", "unload"])
def test_without_its_last_adapter_the_model_is_what_it_was(adapted, merged, how):
    model, words, before = adapted
    frozen = Words(head_bias=True)
    frozen.load_state_dict({name: value.clone() for name, value in before["values"].items()})
    differs(model(IDS), frozen(IDS))
    if merged:
        model.merge_adapter()
    if how == "delete":
        model.delete_adapter("default")
        assert model.peft_config == {}
        assert model.active_adapters == []
        same(model(IDS), frozen(IDS))
    else:
        assert model.unload() is words
    assert_as_before(words, before, exact=not merged)
    assert list(words.state_dict()) == list(frozen.state_dict())


def test_a_model_can_be_adapted_again(adapted):
    model, words, _ = adapted
    model.unload()
    again = get_peft_model(words, PlainConfig(target_modules=["lin"]))
    assert again.active_adapters == ["default"]
    with pytest.raises(AdapterNameError):
        model.delete_adapter("default")


@pytest.mark.parametrize("merged", [False, True], ids=["", "merged"])
def test_merge_and_unload_gives_a_plain_model_that_acts_the_same(adapted, merged):
    model, words, before = adapted
    expected = model(IDS)
    if merged:
        model.merge_adapter()
    plain = model.merge_and_unload()
    assert plain is words
    same(plain(IDS), expected)
    assert not [module for module in plain.modules() if type(module).__module__.startswith("peftcore")]
    assert list(dict(plain.named_modules())) == list(before["modules"])
    assert "_peftcore_adapted_model" not in vars(plain)


def test_merge_and_unload_leaves_what_trained_trainable(adapted):
    model, words, _ = adapted
    model.merge_and_unload()
    trained = {name: p.requires_grad for name, p in words.named_parameters()}
    assert trained.pop("lin.bias") is False
    assert all(trained.values()), trained


def test_only_the_adapters_named_are_kept_for_good():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"]), "a")
    model.add_adapter("b", PlainConfig(target_modules=["one"]))
    model.set_adapter("b")
    expected = model(X)
    model.set_adapter("a")
    same(model.merge_and_unload(adapter_names=["b"])(X), expected)


# ----------------------------------------------------------------------------------------- among several


@pytest.fixture
def three():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one", "two"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["one"]))
    model.add_adapter("c", ScaledConfig(target_modules=["two"]))
    return model


def test_deleting_an_inactive_one_changes_no_output(three):
    before = three(X)
    three.delete_adapter("c")
    assert torch.equal(three(X), before)
    assert list(three.peft_config) == ["a", "b"]


def test_deleting_the_active_one_activates_the_first_left(three):
    three.set_adapter("b")
    expected = three(X)
    three.set_adapter("a")
    three.delete_adapter("a")
    assert three.active_adapters == ["b"]
    assert torch.equal(three(X), expected)
    assert type(three.get_base_model().two).__name__ == "AdaptedLayer"
    assert all(p.requires_grad for p in three.base_model.tuner("b").parameters())
    three.delete_adapter("c")
    assert type(three.get_base_model().two) is nn.Linear


def test_deleting_one_of_several_active_ones_leaves_the_others_active(three):
    three.set_adapter(["b", "c"])
    expected = three(X)
    three.set_adapter(["b", "a", "c"])
    three.delete_adapter("a")
    assert three.active_adapters == ["b", "c"]
    same(three(X), expected)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_deleting_a_merged_one_leaves_the_others_merged(three, name):
    others = [other for other in "abc" if other != name]
    three.set_adapter(others)
    expected = three(X)
    three.set_adapter(["a", "b", "c"])
    three.merge_adapter()
    three.delete_adapter(name)
    assert sorted(three.get_model_status().merged_adapters) == others
    same(three(X), expected)


def test_deleting_leaves_the_files_of_others_alone(three):
    before = get_peft_model_state_dict(three, adapter_name="b")
    three.delete_adapter("a")
    after = get_peft_model_state_dict(three, adapter_name="b")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(".a." in name for name in three.state_dict())


def test_an_unknown_one_can_not_be_deleted(three):
    before = anatomy(three)
    with pytest.raises(AdapterNameError, match="'nobody'"):
        three.delete_adapter("nobody")
    assert_as_before(three, before)


def test_the_name_of_a_deleted_one_is_free(three):
    three.delete_adapter("a")
    three.add_adapter("a", ScaledConfig(target_modules=["one"]))
    assert list(three.peft_config) == ["b", "c", "a"]


def test_shared_state_goes_with_its_adapter():
    model = get_peft_model(Net(), BankedConfig(target_modules=["one", "two"]), "a")
    names = [name for name, _ in model.named_parameters() if "banked_bank" in name]
    assert len(names) == 1
    assert next(iter(get_peft_model_state_dict(model, adapter_name="a"))) == "base_model.banked_bank"
    model.add_adapter("b", PlainConfig(target_modules=["one"]))
    model.delete_adapter("a")
    assert not [name for name in model.state_dict() if "banked_bank" in name]


def test_a_detached_layer_gives_its_adapter_back():
    net = Net()
    model = get_peft_model(net, PlainConfig(target_modules=["one"]))
    layer, weight = net.one, net.one.base_layer.weight.clone()
    model.merge_adapter()
    (part,) = layer.detach("default")
    same(layer.base_layer.weight, weight)
    assert part.plain_A.shape == (2, 5)
    with pytest.raises(AdapterNameError):
        layer.detach("default")
