"""trainable_token_indices: single rows of an embedding, and of the head that shares its weight."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import ConfigError, PeftCoreError, TargetError

from .methods import PlainConfig, TurnedConfig
from .models import Words, anatomy, assert_as_before, differs, same, stir, without_gradient

IDS = torch.tensor([[0, 3, 5, 3], [9, 1, 5, 10]])
KEY = "base_model.model.emb.token_adapter.trainable_tokens_delta"


def adapted(words, tokens):
    return stir(get_peft_model(words, PlainConfig(target_modules=["lin"], trainable_token_indices=tokens)))


@pytest.mark.parametrize("tokens", [[5, 0, 9], {"emb": [5, 0, 9]}], ids=["list", "dict"])
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_their_rows_act_and_no_others(tokens, tied):
    words = Words(tied=tied, head_bias=True)
    table = words.emb.weight.detach().clone()
    model = adapted(words, tokens)
    rows = get_peft_model_state_dict(model)[KEY]
    differs(rows, table[[5, 0, 9]])
    changed = table.clone()
    changed[[5, 0, 9]] = rows
    same(words.emb(IDS), changed[IDS])
    features = torch.randn(2, 3, 6)
    head = changed if tied else words.head.weight
    same(words.head(features), nn.functional.linear(features, head, words.head.bias))
    assert torch.equal(words.emb.base_layer.weight, table)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_merged_unmerged_disabled_and_mixed(tied):
    words = Words(tied=tied)
    frozen, table = words(IDS), words.emb.weight.detach().clone()
    model = adapted(words, {"emb": [5, 0, 9]})
    expected = model(IDS)
    differs(expected, frozen)
    same(model(IDS, adapter_names=["__base__", "default"]), torch.stack([frozen[0], expected[1]]))
    model.merge_adapter()
    same(model(IDS), expected)
    with model.disable_adapter():
        same(model(IDS), frozen)
    same(model(IDS), expected)
    model.unmerge_adapter()
    assert torch.equal(words.emb.base_layer.weight, table)
    same(model(IDS), expected)
    plain = model.merge_and_unload()
    same(plain(IDS), expected)
    assert (plain.head.weight is plain.emb.weight) is tied


def test_two_adapters_train_rows_of_one_tied_table():
    words = Words(tied=True)
    table = words.emb.weight.detach().clone()
    model = get_peft_model(words, PlainConfig(target_modules=["lin"], trainable_token_indices={"emb": [1, 5]}), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["lin"], trainable_token_indices={"emb": [5, 9]}))
    stir(model, "a", "b")
    model.set_adapter("b")
    b = model(IDS)
    model.set_adapter("a")
    a = model(IDS)
    same(model(IDS, adapter_names=["b", "a"]), torch.stack([b[0], a[1]]))
    model.set_adapter(["a", "b"])
    both = model(IDS)
    model.merge_adapter(["a"])
    same(model(IDS), both)
    model.merge_adapter()
    same(model(IDS), both)
    model.delete_adapter("a")
    same(model(IDS), b)
    model.unmerge_adapter()
    same(words.emb.base_layer.weight, table)
    assert words.head.base_layer.weight is words.emb.base_layer.weight


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_gradients_and_the_file(tmp_path, tied):
    words = Words(tied=tied)
    values = {name: value.clone() for name, value in words.state_dict().items()}
    model = adapted(words, [5, 0, 9])
    model(IDS).square().sum().backward()
    assert without_gradient(model) == []
    tokens = [name for name, p in model.named_parameters() if p.requires_grad and "plain" not in name]
    assert len(tokens) == 1
    assert [key for key in get_peft_model_state_dict(model) if "plain" not in key] == [KEY]
    model.save_pretrained(tmp_path)
    fresh = Words(tied=tied)
    fresh.load_state_dict(values)
    same(PeftModel.from_pretrained(fresh, tmp_path)(IDS), model(IDS))


def test_made_without_memory_and_loaded(tmp_path):
    words = Words()
    values = {name: value.clone() for name, value in words.state_dict().items()}
    model = adapted(words, [5, 0, 9])
    model.save_pretrained(tmp_path)
    fresh = Words()
    fresh.load_state_dict(values)
    same(PeftModel.from_pretrained(fresh, tmp_path, low_cpu_mem_usage=True)(IDS), model(IDS))


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ({"emb": [11]}, TargetError),
        ({"emb": [-1]}, TargetError),
        ({"emb": [1, 1]}, TargetError),
        ({"head": [1]}, TargetError),
        ({"embb": [1]}, TargetError),
        ({"emb": []}, PeftCoreError),
    ],
    ids=repr,
)
def test_rows_that_are_not_there(tokens, error):
    words = Words()
    before = anatomy(words)
    with pytest.raises(error):
        get_peft_model(words, PlainConfig(target_modules=["lin"], trainable_token_indices=tokens))
    assert_as_before(words, before)


def test_an_embedding_that_is_adapted_as_a_whole():
    with pytest.raises(ConfigError, match=r"emb.*already"):
        get_peft_model(Words(), PlainConfig(target_modules=["emb"], trainable_token_indices={"emb": [1]}))
