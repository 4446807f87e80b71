"""Merging into a weight that several layers store, which adapters change alike or not."""

import copy
import itertools

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import MergeError

from .methods import PlainConfig, ScaledConfig, TurnedConfig
from .models import Words, anatomy, assert_as_before, differs, same, stir

IDS = torch.tensor([[0, 3, 5, 3], [9, 1, 5, 10]])

#: What adapters do to a model whose head stores the embedding's weight: to both layers alike, or to one alone.
ADAPTERS = {
    "rows": lambda: PlainConfig(target_modules=["lin"], trainable_token_indices=[5, 0, 9]),
    "more rows": lambda: TurnedConfig(target_modules=["lin"], trainable_token_indices=[1, 5]),
    "rows with bias": lambda: PlainConfig(target_modules=["lin"], trainable_token_indices=[2, 9], bias="all"),
    "tied": lambda: PlainConfig(target_modules=["emb"], ensure_weight_tying=True),
    "tied scaled": lambda: ScaledConfig(target_modules=["emb"], ensure_weight_tying=True),
    "tied with bias": lambda: PlainConfig(target_modules=["emb"], ensure_weight_tying=True, bias="all"),
    "table": lambda: PlainConfig(target_modules=["emb"]),
    "scaled table": lambda: ScaledConfig(target_modules=["emb"]),
    "head": lambda: PlainConfig(target_modules=["head"]),
    "scaled head": lambda: ScaledConfig(target_modules=["head"]),
    "turned head": lambda: TurnedConfig(target_modules=["head"]),
    "both apart": lambda: PlainConfig(target_modules=["emb", "head"]),
}
ALIKE = {"rows", "more rows", "tied", "tied scaled"}

SEQUENCES = [
    *itertools.permutations(ADAPTERS, 2),
    ("tied", "rows", "more rows"),
    ("table", "rows", "head"),
    ("tied", "rows", "table", "scaled head"),
]
SEQUENCES.sort()


def adapted(*names, build=lambda: Words(tied=True, head_bias=True), adapters=ADAPTERS):
    words = build()
    model = get_peft_model(words, adapters[names[0]](), names[0])
    for name in names[1:]:
        model.add_adapter(name, adapters[name]())
    model.set_adapter(list(names))
    return stir(model), words


def stored(layer):
    """The parameter in which a layer stores its weight now."""
    return getattr(layer, "base_layer", layer)._parameters["weight"]


class Frozen:
    """Notes the weight that a model's layers share, and checks that it is as it was."""

    def __init__(self, *layers):
        self.layers = layers
        self.weight = stored(layers[0])
        self.values = self.weight.detach().clone()

    def check(self, exact):
        assert all(stored(layer) is self.weight for layer in self.layers)
        torch.testing.assert_close(self.weight.detach(), self.values, atol=0 if exact else 1e-5, rtol=0)


@pytest.mark.parametrize("names", SEQUENCES, ids="-".join)
@pytest.mark.parametrize("increments", [False, True], ids=["at once", "in increments"])
def test_merging_never_changes_the_output(names, increments):
    model, words = adapted(*names)
    weight, expected = Frozen(words.emb, words.head), model(IDS)
    with model.disable_adapter():
        frozen = model(IDS)
    differs(expected, frozen)
    for name in names if increments else [None]:
        model.merge_adapter(None if name is None else [name])
        same(model(IDS), expected)
    with model.disable_adapter():
        same(model(IDS), frozen)
        weight.check(exact=False)
    same(model(IDS), expected)
    same(copy.deepcopy(model)(IDS), expected)
    plain = copy.deepcopy(model).merge_and_unload()
    same(plain(IDS), expected)
    assert (plain.head.weight is plain.emb.weight) is (set(names) <= ALIKE)
    model.unmerge_adapter()
    same(model(IDS), expected)
    weight.check(exact=False)


@pytest.mark.parametrize("names", SEQUENCES, ids="-".join)
@pytest.mark.parametrize("number", [0, -1], ids=["the first", "the last"])
def test_deleting_one_that_is_merged(names, number):
    model, words = adapted(*names)
    weight = Frozen(words.emb, words.head)
    rest = [name for name in names if name != names[number]]
    model.set_adapter(rest)
    expected = model(IDS)
    model.set_adapter(list(names))
    for name in names:
        model.merge_adapter([name])
    model.delete_adapter(names[number])
    same(model(IDS), expected)
    model.merge_adapter()
    same(model(IDS), expected)
    plain = copy.deepcopy(model).merge_and_unload()
    same(plain(IDS), expected)
    assert (plain.head.weight is plain.emb.weight) is (set(rest) <= ALIKE)
    model.unmerge_adapter()
    same(model(IDS), expected)
    weight.check(exact=False)


@pytest.mark.parametrize("names", [("rows", "table"), ("table", "rows"), ("rows", "tied")], ids="-".join)
def test_the_shared_weight_comes_back_bit_for_bit(names):
    model, words = adapted(*names)
    weight = Frozen(words.emb, words.head)
    for name in names:
        model.merge_adapter([name])
    model.unmerge_adapter()
    weight.check(exact=True)


def test_what_is_changed_alike_needs_no_second_weight():
    model, words = adapted("rows", "tied")
    model.merge_adapter()
    assert stored(words.emb) is stored(words.head)
    model.add_adapter("table", ADAPTERS["table"]())
    model.merge_adapter(["table"])
    assert stored(words.emb) is not stored(words.head)
    model.delete_adapter("table")
    model.merge_adapter()
    assert stored(words.emb) is stored(words.head)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "refuse",
    [lambda model, words: words.emb.adapters["table"].plain_A, lambda model, words: words.lin.adapters["lin"].plain_A],
)
def test_a_refused_increment_leaves_one_weight(refuse):
    adapters = {**ADAPTERS, "lin": lambda: PlainConfig(target_modules=["lin"])}
    model, words = adapted("rows", "table", "lin", adapters=adapters)
    with torch.no_grad():
        refuse(model, words).fill_(float("inf"))
    model.merge_adapter(["rows"])
    before, features = anatomy(model), torch.randn(2, 6)
    logits = words.head(features)
    with pytest.raises(MergeError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert_as_before(model, before, exact=False)
    assert words.emb.merged_adapters == words.head.merged_adapters == ["rows"]
    same(words.head(features), logits)
    model.delete_adapter("table")
    model.merge_adapter(["rows"])
    assert stored(words.emb) is stored(words.head)


def test_an_order_that_would_change_the_output_is_refused():
    model, _ = adapted("rows", "table")
    before, expected = anatomy(model), model(IDS)
    with pytest.raises(MergeError, match="order rows, table"):
        model.merge_adapter(["table"])
    assert_as_before(model, before)
    assert torch.equal(model(IDS), expected)


def test_an_order_is_refused_too_where_a_part_acts_through_the_shared_weight():
    """The rows stand above the head's delta, so they can't be merged below it."""
    model, _ = adapted("head", "rows")
    before, expected = anatomy(model), model(IDS)
    with pytest.raises(MergeError, match="order head, rows"):
        model.merge_adapter(["rows"])
    assert_as_before(model, before, exact=False)
    same(model(IDS), expected)


def test_an_increment_that_is_refused_since_the_order_has_changed():
    model, words = adapted("rows", "table")
    model.merge_adapter(["rows"])
    model.set_adapter(["table", "rows"])
    before, output = anatomy(model), model(IDS)
    with pytest.raises(MergeError, match="order table, rows"):
        model.merge_adapter()
    assert_as_before(model, before)
    assert words.head.merged_adapters == ["rows"]
    same(model(IDS), output)


# --------------------------------------------------------------------------------------- later, and more owners


def test_an_adapter_that_comes_while_the_weights_are_apart_still_finds_both():
    model, words = adapted("table")
    weight = Frozen(words.emb, words.head)
    model.merge_adapter()
    model.add_adapter("tied", ADAPTERS["tied"]())
    model.unmerge_adapter()
    model.set_adapter(["table", "tied"])
    expected = stir(model)(IDS)
    change = words.emb.adapters["tied"].canonical_delta().T
    features = torch.randn(2, 6)
    same(words.head(features), nn.functional.linear(features, weight.values + change, words.head.base.bias))
    model.merge_adapter()
    same(model(IDS), expected)


@pytest.mark.parametrize("late", ["scaled head", "scaled table", "turned head"])
def test_an_adapter_that_comes_while_one_weight_is_merged_sees_the_frozen_one(late):
    model, words = adapted("rows", late)
    expected = model(IDS)
    state = {name: p.detach().clone() for name, p in model.named_parameters() if late in name}
    model.delete_adapter(late)
    model.merge_adapter()
    assert stored(words.emb) is stored(words.head)
    model.add_adapter(late, ADAPTERS[late]())
    model.load_state_dict(state, strict=False)
    model.set_adapter(["rows", late])
    same(model(IDS), expected)
    model.merge_adapter()
    same(model(IDS), expected)


class Translator(Words):
    """Two embeddings and a head that store one weight."""

    def __init__(self):
        super().__init__(tied=True)
        self.other = nn.Embedding(11, 6)
        self.other.weight = self.emb.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.lin(self.emb(ids))) + self.other(ids.flip(-1)))


TRANSLATORS = {
    "first": lambda: PlainConfig(target_modules=["lin"], trainable_token_indices={"emb": [5, 0]}),
    "second": lambda: TurnedConfig(target_modules=["lin"], trainable_token_indices={"other": [5, 9]}),
    "one": lambda: PlainConfig(target_modules=["other"]),
    "all": lambda: PlainConfig(target_modules=["other"], ensure_weight_tying=True),
}


@pytest.mark.parametrize("names", list(itertools.permutations(TRANSLATORS, 2)), ids="-".join)
@pytest.mark.parametrize("deleted", [0, 1], ids=["delete the first", "delete the second"])
def test_three_layers_with_one_weight(names, deleted):
    model, net = adapted(*names, build=Translator, adapters=TRANSLATORS)
    weight, expected = Frozen(net.emb, net.other, net.head), model(IDS)
    for name in names:
        model.merge_adapter([name])
        same(model(IDS), expected)
    model.unmerge_adapter()
    weight.check(exact=False)
    model.set_adapter(names[1 - deleted])
    alone = model(IDS)
    model.set_adapter(list(names))
    model.merge_adapter()
    same(model(IDS), expected)
    model.delete_adapter(names[deleted])
    same(model(IDS), alone)
    model.unmerge_adapter()
    weight.check(exact=False)
