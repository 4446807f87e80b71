"""Merging in steps, unmerging, refusals, and failures half way."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import AdapterNameError, MergeError, NotMergeableError, PeftCoreError

from .methods import GatedConfig, PlainConfig, ScaledConfig, ShiftedConfig, TurnedConfig
from .models import Net, Single, Words, anatomy, assert_as_before, differs, same

CONFIGS = {"plain": PlainConfig, "more": PlainConfig, "scaled": ScaledConfig, "turned": TurnedConfig}
TARGETS = ["one", "two"]


def adapted(*names):
    model = get_peft_model(Net(), CONFIGS[names[0]](target_modules=TARGETS), names[0])
    for name in names[1:]:
        model.add_adapter(name, CONFIGS[name](target_modules=TARGETS))
    model.set_adapter(list(names))
    return model


SEQUENCES = [
    ("plain", "more"),
    ("plain", "scaled"),
    ("scaled", "plain"),
    ("turned", "plain", "scaled"),
    ("plain", "turned", "scaled"),
    ("scaled", "turned", "more", "plain"),
]


@pytest.mark.parametrize("names", SEQUENCES, ids="-".join)
def test_merging_one_after_the_other_never_changes_the_output(names):
    model, x = adapted(*names), torch.randn(4, 5)
    expected = model(x)
    for name in names:
        model.merge_adapter([name])
        same(model(x), expected)
    assert model.get_model_status().merged_adapters == list(names)
    model.merge_adapter()
    same(model(x), expected)
    model.unmerge_adapter()
    same(model(x), expected)


@pytest.mark.parametrize("names", SEQUENCES, ids="-".join)
def test_unmerging_restores_the_frozen_weights(names):
    model = adapted(*names)
    net = model.get_base_model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model.merge_adapter(list(names[:1]))
    model.merge_adapter()
    differs(net.one.base_layer.weight, before["one.base_layer.weight"])
    model.unmerge_adapter()
    for name, value in net.state_dict().items():
        same(value, before[name])
    model.unmerge_adapter()
    assert not net.one.merged


def test_unmerging_is_exact_where_the_frozen_weight_was_kept():
    model = adapted("turned")
    weight = model.get_base_model().one.base_layer.weight
    before = weight.clone()
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(weight, before)


def test_merged_weights_keep_their_parameters():
    model = adapted("plain", "turned")
    before = [id(p) for p in model.parameters()]
    model.merge_adapter()
    assert [id(p) for p in model.parameters()] == before
    assert not model.get_base_model().one.base_layer.weight.requires_grad


@pytest.mark.parametrize("names", [("turned", "plain"), ("plain", "turned"), ("scaled", "turned")], ids="-".join)
def test_an_order_that_would_change_the_output_is_refused(names):
    model, x = adapted(*names), torch.randn(4, 5)
    before, expected = anatomy(model), model(x)
    with pytest.raises(MergeError, match=f"order {names[0]}, {names[1]}"):
        model.merge_adapter([names[1]])
    assert_as_before(model, before)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("names", [("plain", "more"), ("scaled", "plain"), ("plain", "scaled")], ids="-".join)
def test_sums_may_be_merged_in_any_order(names):
    model, x = adapted(*names), torch.randn(4, 5)
    expected = model(x)
    for name in reversed(names):
        model.merge_adapter([name])
        same(model(x), expected)


def test_an_inactive_adapter_can_be_merged():
    model, x = adapted("plain", "scaled"), torch.randn(4, 5)
    both = model(x)
    model.set_adapter("plain")
    model.merge_adapter(["scaled"])
    assert model.get_model_status().merged_adapters == ["scaled"]
    assert model.active_adapters == ["plain"]
    model.unmerge_adapter()
    model.set_adapter(["plain", "scaled"])
    same(model(x), both)


def test_a_bias_that_appears_with_merging_goes_with_unmerging():
    net = Net()
    model, x = get_peft_model(net, ShiftedConfig(target_modules=["two"])), torch.randn(4, 5)
    expected = model(x)
    model.merge_adapter()
    assert net.two.base_layer.bias is not None
    same(model(x), expected)
    model.unmerge_adapter()
    assert net.two.base_layer.bias is None
    same(model(x), expected)


def test_unknown_names_are_refused():
    with pytest.raises(AdapterNameError, match=r"nobody.*plain"):
        adapted("plain").merge_adapter(["nobody"])


# ------------------------------------------------------------------------------------------ nothing half done


def spoil(model, name, attribute, value=float("nan"), layer="two"):
    with torch.no_grad():
        getattr(model.get_base_model().get_submodule(layer).adapters[name], attribute).fill_(value)


@pytest.mark.parametrize(("name", "attribute"), [("plain", "plain_B"), ("scaled", "scaled_s"), ("turned", "turned_R")])
@pytest.mark.parametrize("merged_before", [[], ["more"]], ids=["", "another is merged"])
def test_safe_merge_refuses_what_is_not_finite_and_leaves_all_as_it_was(name, attribute, merged_before):
    model = adapted("more", name)
    model.merge_adapter(merged_before)
    spoil(model, name, attribute)
    before = anatomy(model)
    with pytest.raises(MergeError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert_as_before(model, before, exact=False)
    assert model.get_model_status().merged_adapters == merged_before
    for layer in model.base_model.layers():
        assert layer.merged_adapters == merged_before


def test_safe_merge_looks_at_the_bias_too():
    model = get_peft_model(Net(), ShiftedConfig(target_modules=["one", "two"]))
    spoil(model, "default", "shifted_b")
    before = anatomy(model)
    with pytest.raises(MergeError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert_as_before(model, before)


def test_safe_merge_refuses_what_the_weights_dtype_cannot_hold():
    """A float32 delta on a float16 layer is finite until it is stored."""
    model = get_peft_model(Single(nn.Linear(4, 4).half()), PlainConfig(target_modules=["layer"]))
    for attribute in ("plain_A", "plain_B"):
        spoil(model, "default", attribute, 1e3, "layer")
    before = anatomy(model)
    with pytest.raises(MergeError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert_as_before(model, before)


def test_without_safe_merge_nothing_is_looked_at():
    model = adapted("plain")
    spoil(model, "plain", "plain_B")
    model.merge_adapter()
    assert model(torch.ones(1, 5)).isnan().all()


def test_what_cannot_be_merged_says_why_and_nothing_is_merged():
    model = adapted("plain")
    model.add_adapter("gated", GatedConfig(target_modules=["two"]))
    model.set_adapter(["plain", "gated"])
    before = anatomy(model)
    with pytest.raises(NotMergeableError, match=r"GatedAdapter.*its gate depends on the input"):
        model.merge_adapter()
    with pytest.raises(NotMergeableError, match="gate"):
        model.merge_and_unload()
    assert_as_before(model, before)
    assert not any(layer.merged for layer in model.base_model.layers())


@pytest.mark.parametrize("names", [("plain",), ("plain", "turned"), ("scaled",)], ids="-".join)
def test_a_failure_on_a_later_layer_undoes_the_earlier_ones(names, monkeypatch):
    model = adapted(*names)
    before = anatomy(model)

    def refuse(*_):
        raise MergeError("the storage is read-only")

    last = model.get_base_model().two.base
    monkeypatch.setattr(last, "add_", refuse)
    monkeypatch.setattr(last, "replace_", refuse)
    with pytest.raises(MergeError, match="read-only"):
        model.merge_adapter()
    assert_as_before(model, before, exact=False)
    assert not any(layer.merged for layer in model.base_model.layers())


def test_a_bias_that_cannot_be_written_leaves_the_weight_alone():
    model = get_peft_model(Single(nn.Embedding(7, 5)), ShiftedConfig(target_modules=["layer"]))
    before = anatomy(model)
    with pytest.raises(PeftCoreError, match="bias"):
        model.merge_adapter()
    assert_as_before(model, before)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_weight_that_cannot_be_written_leaves_the_bias_alone(has_bias, monkeypatch):
    model = get_peft_model(Single(nn.Linear(7, 5, bias=has_bias)), ShiftedConfig(target_modules=["layer"]))
    before = anatomy(model)

    def refuse(*_):
        raise MergeError("the storage is read-only")

    monkeypatch.setattr(model.get_base_model().layer.base, "replace_", refuse)
    with pytest.raises(MergeError, match="read-only"):
        model.merge_adapter()
    assert_as_before(model, before)


# ------------------------------------------------------------------------------------------- shared weights


@pytest.fixture
def tied():
    words = Words(tied=True)
    model = get_peft_model(words, PlainConfig(target_modules=["emb"]))
    ids = torch.arange(8).reshape(2, 4)
    return model, words, ids, model(ids)


def test_merging_into_a_weight_that_another_layer_stores_too(tied):
    model, words, ids, expected = tied
    model.merge_adapter()
    same(model(ids), expected)
    model.unmerge_adapter()
    same(model(ids), expected)
    assert words.head.weight is words.emb.base_layer.weight


def test_disabling_while_a_shared_weight_is_merged(tied):
    model, words, ids, expected = tied
    frozen = words.head.weight.detach().clone()
    model.merge_adapter()
    with model.disable_adapter():
        differs(model(ids), expected)
    same(words.head.weight, frozen)
    same(model(ids), expected)


def test_deleting_another_while_a_shared_weight_is_merged(tied):
    model, _, ids, expected = tied
    model.add_adapter("other", ScaledConfig(target_modules=["emb"]))
    model.set_adapter(["default", "other"])
    model.merge_adapter()
    model.delete_adapter("other")
    same(model(ids), expected)


def test_a_refused_merge_leaves_shared_weights_shared(tied):
    model, words, _, _ = tied
    model.add_adapter("other", PlainConfig(target_modules=["lin"]))
    model.set_adapter(["other", "default"])
    with torch.no_grad():
        words.lin.adapters["other"].plain_A.fill_(float("inf"))
    with pytest.raises(MergeError):
        model.merge_adapter(safe_merge=True)
    assert words.head.weight is words.emb.base_layer.weight
