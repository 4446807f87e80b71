"""The family Bypass: what depends on the input, alone and among others."""

import itertools

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.bypass import Bypass
from peftcore.config import LayerConfig
from peftcore.exceptions import MergeError, NotMergeableError, TargetError
from peftcore.method import PeftMethod

from .methods import PlainConfig, TurnedConfig
from .models import Net, Single, anatomy, assert_as_before, differs, same, stir


class RoutedConfig(LayerConfig, method="routed"):
    pass


class RoutedAdapter(Bypass):
    """Two matrices, weighed by what comes in."""

    kinds = frozenset({"linear", "embedding", "attention"})
    commutes = True
    unmergeable_because = "it weighs two matrices by the input"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.routed_w = nn.Parameter(torch.randn(2, base.out_features, base.in_features) / 2)
        self.routed_r = nn.Parameter(torch.randn(2, base.in_features))

    def change(self, x, output):
        shares = (x @ self.routed_r.T).softmax(-1)
        return torch.einsum("...e,eoi,...i->...o", shares, self.routed_w, x)


class GatingConfig(LayerConfig, method="gating"):
    pass


class GatingAdapter(Bypass):
    """A share of the output itself, so its place among the others matters."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.gating_v = nn.Parameter(torch.randn(base.in_features))

    def change(self, x, output):
        return output * torch.tanh(x @ self.gating_v).unsqueeze(-1)


@pytest.fixture(autouse=True, scope="module")
def _methods():
    methods = [
        PeftMethod(name="routed", config_cls=RoutedConfig, adapter_cls=RoutedAdapter),
        PeftMethod(name="gating", config_cls=GatingConfig, adapter_cls=GatingAdapter),
    ]
    for method in methods:
        register_peft_method(method)
    yield
    for method in methods:
        unregister_peft_method(method.name)


CONFIGS = {"routed": RoutedConfig, "gating": GatingConfig, "plain": PlainConfig, "turned": TurnedConfig}


def adapted(*names, layer=None):
    model = get_peft_model(Single(layer or nn.Linear(5, 6)), CONFIGS[names[0]](target_modules=["layer"]), names[0])
    for name in names[1:]:
        model.add_adapter(name, CONFIGS[name](target_modules=["layer"]))
    model.set_adapter(list(names))
    return stir(model)


def by_hand(model, names, x):
    """The definition, written out: each adapter around those before it."""
    layer = model.base_model.model.layer
    below = layer.base_layer
    for name in names:
        part = layer.adapters[name]
        if name == "plain":
            below = lambda x, below=below, part=part: below(x) + x @ part.delta_weight().T  # noqa: E731
        elif name == "turned":
            below = lambda x, below=below, part=part: below(x @ part.turned_R.T)  # noqa: E731
        else:
            below = lambda x, below=below, part=part: below(x) + part.change(x, below(x))  # noqa: E731
    return below(x)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (0, 5)], ids=str)
@pytest.mark.parametrize("names", [p for n in (1, 2, 3) for p in itertools.permutations(CONFIGS, n)], ids="-".join)
def test_each_acts_around_those_before_it(names, shape):
    if not {"routed", "gating"} & {*names}:
        return
    model, x = adapted(*names), torch.randn(shape)
    same(model(x), by_hand(model, names, x))


def test_in_a_mixed_batch_rows_have_their_own():
    model, x = adapted("routed", "gating", "plain"), torch.randn(4, 3, 5)
    alone = {"__base__": model.base_model.model.layer.base_layer(x)}
    for name in ("routed", "gating", "plain"):
        model.set_adapter(name)
        alone[name] = model(x)
    for names in itertools.permutations(alone):
        same(model(x, adapter_names=list(names)), torch.stack([alone[name][row] for row, name in enumerate(names)]))


def test_it_says_everywhere_why_it_cannot_be_merged():
    model, x = adapted("plain", "routed"), torch.randn(3, 5)
    expected, before = model(x), anatomy(model)
    for merge in (
        model.merge_adapter,
        lambda: model.merge_adapter(["routed"]),
        lambda: model.merge_adapter(safe_merge=True),
        model.merge_and_unload,
        model.base_model.model.layer.merge,
    ):
        with pytest.raises(NotMergeableError, match="it weighs two matrices by the input"):
            merge()
        assert_as_before(model, before)
    same(model(x), expected)
    with pytest.raises(NotMergeableError, match="its effect depends on the input"):
        adapted("gating").merge_adapter()


@pytest.mark.parametrize("names", [("plain", "routed"), ("routed", "plain"), ("plain", "gating")], ids="-".join)
def test_deltas_are_merged_beneath_it(names):
    model, x = adapted(*names), torch.randn(3, 5)
    expected = model(x)
    model.merge_adapter(["plain"])
    same(model(x), expected)
    model.unmerge_adapter()
    same(model(x), expected)


@pytest.mark.parametrize("names", [("gating", "plain"), ("routed", "turned")], ids="-".join)
def test_what_it_acts_on_is_not_merged_above_it(names):
    model, x = adapted(*names), torch.randn(3, 5)
    expected = model(x)
    with pytest.raises(MergeError, match="order"):
        model.merge_adapter([names[1]])
    same(model(x), expected)


def test_the_adapter_may_be_finer_than_the_layer():
    layer = nn.Linear(5, 6).bfloat16()
    model, x = adapted("routed", layer=layer), torch.randn(3, 5).bfloat16()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    output = model(x)
    assert output.dtype == torch.bfloat16
    part = model.base_model.model.layer.adapters["routed"]
    same(output, (layer(x) + part.change(x.float(), None)).bfloat16())
    differs(output.float(), layer(x).float())


@pytest.mark.parametrize(
    "layer", [nn.MultiheadAttention(6, 2), nn.Embedding(5, 6, max_norm=1.0)], ids=lambda layer: type(layer).__name__
)
def test_layers_that_act_by_their_weight_alone_are_refused(layer):
    model = Single(layer)
    before = anatomy(model)
    with pytest.raises(TargetError, match=type(layer).__name__):
        get_peft_model(model, RoutedConfig(target_modules=["layer"]))
    assert_as_before(model, before)


def test_it_trains():
    model = get_peft_model(Net(), RoutedConfig(target_modules=["one", "two"]))
    model(torch.randn(4, 5)).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all((grad is not None) == ("routed" in name) for name, grad in grads.items())
