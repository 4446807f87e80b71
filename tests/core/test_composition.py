"""Several adapters on one layer: forward, the merged weight and the mixed batch follow one definition."""

import itertools

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import CompositionError

from .methods import GatedConfig, PlainConfig, ScaledConfig, ShiftedConfig, TurnedConfig
from .models import Net, Single, differs, same, stir

CONFIGS = {"plain": PlainConfig, "scaled": ScaledConfig, "turned": TurnedConfig, "shifted": ShiftedConfig}
ORDERS = [order for number in (1, 2, 3) for order in itertools.permutations(["plain", "scaled", "turned"], number)]
ORDERS += [("shifted", "turned", "scaled"), ("turned", "shifted"), ("scaled", "shifted", "plain")]


def single_with(names, layer=None):
    model = get_peft_model(Single(layer or nn.Linear(5, 6)), CONFIGS[names[0]](target_modules=["layer"]), names[0])
    for name in names[1:]:
        model.add_adapter(name, CONFIGS[name](target_modules=["layer"]))
    model.set_adapter(list(names))
    return model


def expected_weight(model, names):
    """The definition, written out: deltas from the frozen weight are added, transforms applied, in order."""
    layer = model.base_model.model.layer
    frozen, weight, bias = layer.base_layer.weight, layer.base_layer.weight, layer.base_layer.bias
    for name in names:
        part = layer.adapters[name]
        if name == "plain":
            weight = weight + part.plain_B @ part.plain_A
        elif name == "scaled":
            weight = weight + part.scaled_s[:, None] * frozen
        elif name == "turned":
            weight = weight @ part.turned_R
        else:
            weight, bias = weight + part.shifted_w, bias + part.shifted_b
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_forward_merged_and_mixed_batch_are_one(names):
    model = single_with(names)
    x = torch.randn(4, 3, 5)
    weight, bias = expected_weight(model, names)
    expected = nn.functional.linear(x, weight, bias)
    same(model(x), expected)
    layer = model.base_model.model.layer
    model.merge_adapter()
    same(layer.base_layer.weight, weight)
    same(layer.base_layer.bias, bias)
    same(model(x), expected)


def test_order_matters_where_it_should():
    model = single_with(["turned", "plain"])
    x = torch.randn(4, 5)
    turned_first = model(x)
    model.set_adapter(["plain", "turned"])
    differs(model(x), turned_first)


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_rows_of_a_batch_are_each_adapter_alone(names):
    model = single_with(names)
    x = torch.randn(2 * len(names) + 1, 3, 5)
    rows = [*names, "__base__", *names]
    with torch.no_grad():
        mixed = model(x, adapter_names=rows)
        for row, name in enumerate(rows):
            weight, bias = expected_weight(model, [] if name == "__base__" else [name])
            same(mixed[row], nn.functional.linear(x[row], weight, bias))


def test_an_adapter_that_cannot_be_merged_goes_with_others():
    model = single_with(["plain"])
    model.add_adapter("gated", GatedConfig(target_modules=["layer"]))
    x = torch.randn(4, 5)
    plain = model(x)
    gate = 1 + torch.tanh(x @ model.base_model.model.layer.adapters["gated"].gated_v)
    model.set_adapter(["plain", "gated"])
    same(model(x), plain * gate[:, None])
    same(model(x, adapter_names=["gated", "plain", "__base__", "plain"])[1], plain[1])


def test_adapters_on_different_layers_do_not_meet():
    net, x = Net(), torch.randn(4, 5)
    model = get_peft_model(net, PlainConfig(target_modules=["one"]), "a")
    model.add_adapter("b", ScaledConfig(target_modules=["two"]))
    model.set_adapter(["a", "b"])
    one, two = net.one, net.two
    weight = one.base_layer.weight + one.adapters["a"].delta_weight()
    hidden = torch.tanh(nn.functional.linear(x, weight, one.base_layer.bias))
    weight = (1 + two.adapters["b"].scaled_s[:, None]) * two.base_layer.weight
    same(model(x), net.head(torch.tanh(nn.functional.linear(hidden, weight))))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(3, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3, stride=2), torch.randn(3, 4, 9)),
        (nn.Embedding(9, 4, padding_idx=0), torch.tensor([[0, 3], [8, 1], [3, 3]])),
        (nn.Embedding(9, 4, max_norm=1.0), torch.tensor([[0, 3], [8, 1], [3, 3]])),
    ],
    ids=["grouped conv2d", "conv1d", "embedding", "embedding with max_norm"],
)
def test_on_other_kinds_of_layer(layer, x):
    model = single_with(["plain", "scaled"], layer)
    both = model(x)
    mixed = model(x, adapter_names=["plain", "__base__", "scaled"])
    model.merge_adapter()
    same(model(x), both)
    model.unmerge_adapter()
    for row, names in enumerate((["plain"], [], ["scaled"])):
        model.set_adapter(names)
        same(mixed[row], model(x)[row])
    with model.disable_adapter():
        differs(both, model(x))


def test_a_copy_of_the_whole_layer_stands_alone():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"], modules_to_save=["head"]), "a")
    model.add_adapter("b", PlainConfig(target_modules=["one", "head"]))
    stir(model, "a", "b")
    before, x = model(torch.ones(1, 5)), torch.ones(1, 5)
    with pytest.raises(CompositionError, match=r"head|Linear"):
        model.set_adapter(["a", "b"])
    assert model.active_adapters == ["a"]
    same(model(x), before)


def test_what_acts_inside_a_module_that_is_replaced_is_refused():
    """Otherwise the second adapter would train nothing, without a word."""
    outer = Single(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2)))
    model = get_peft_model(outer, PlainConfig(target_modules=[], modules_to_save=["layer"]), "whole")
    model.add_adapter("inside", PlainConfig(target_modules=["layer.0"]))
    with pytest.raises(CompositionError, match="inside"):
        model.set_adapter(["whole", "inside"])
