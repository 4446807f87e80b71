"""The family OutputScale: maps and shifts of outputs, scaled inputs, alone and among others."""

import functools
import itertools

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.scale import OutputScale
from peftcore.adapters.transform import WeightTransform
from peftcore.config import LayerConfig, option
from peftcore.method import PeftMethod

from .methods import PlainConfig, ShiftedConfig, TurnedConfig
from .models import Single, anatomy, assert_as_before, differs, same


class AffineConfig(LayerConfig, method="affine"):
    parts: str = option("dmsi", "Which of factors (d), map (m), shift (s) and input factors (i) there are.")


class AffineAdapter(OutputScale):
    """Has every part of the family, where the config asks for it."""

    kinds = OutputScale.kinds | {"embedding"}

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.parts = config.parts
        self.affine_d, self.affine_s = (nn.Parameter(torch.randn(base.out_features)) for _ in range(2))
        self.affine_i = nn.Parameter(torch.randn(base.in_features))

    def output_factors(self):
        return self.affine_d if "d" in self.parts else None

    def shift(self):
        return self.affine_s if "s" in self.parts else None

    def input_factors(self):
        return self.affine_i if "i" in self.parts else None


class MixingConfig(AffineConfig, method="mixing"):
    pass


class MixingAdapter(AffineAdapter):
    """Its map mixes outputs: to each of a group, its neighbour's half is added."""

    def change_output(self, features):
        return super().change_output(features) + neighbours(features, self.base.groups) / 2


def neighbours(features, groups, dim=-1):
    """What each output is mixed with, another one of its group."""
    return torch.cat([group.roll(1, dim) for group in features.chunk(groups, dim)], dim)


class FlippedConfig(LayerConfig, method="flipped"):
    pass


class FlippedAdapter(WeightTransform):
    """A transform of the outputs, but not of the bias: W' = diag(f) W."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.flipped_f = nn.Parameter(torch.randn(base.out_features))

    def transform(self, weight):
        return self.flipped_f.unsqueeze(-1) * weight

    def post(self, output):
        return self.flipped_f * output


METHODS = [
    PeftMethod(name="flipped", config_cls=FlippedConfig, adapter_cls=FlippedAdapter),
    PeftMethod(name="affine", config_cls=AffineConfig, adapter_cls=AffineAdapter, prefix="affine_", shares_prefix=True),
    PeftMethod(name="mixing", config_cls=MixingConfig, adapter_cls=MixingAdapter, prefix="affine_", shares_prefix=True),
]
LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), (3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 8, bias=False), (2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, bias=False), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 8, (3, 2), stride=2, padding=1), (2, 4, 7, 5)),
    "conv2d with groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 7, 5)),
    "depthwise conv2d": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same"), (2, 4, 7, 5)),
    "conv2d without batch": (lambda: nn.Conv2d(4, 8, 3), (4, 7, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2, groups=2), (2, 4, 5, 3, 4)),
}
PARTS = [c for n in range(1, 5) for c in map("".join, itertools.combinations("dmsi", n)) if c != "m"]


@pytest.fixture(autouse=True, scope="module")
def affine_methods():
    for method in METHODS:
        register_peft_method(method)
    yield
    for method in METHODS:
        unregister_peft_method(method.name)


def config(parts, **options):
    cls = MixingConfig if "m" in parts else AffineConfig
    return cls(target_modules=["layer"], parts=parts, **options)


def by_hand(layer, adapter, parts, x):
    """M (W (l ∘ x) + b) + s, with every dimension moved by hand."""
    spatial = [1] * (len(layer.weight.shape) - 2)
    if "i" in parts:
        x = x * adapter.affine_i.reshape(-1, *spatial)
    y = layer(x)
    dim = -1 - len(spatial)
    changed = y * adapter.affine_d.reshape(-1, *spatial) if "d" in parts else y
    if "m" in parts:
        changed = changed + neighbours(y, getattr(layer, "groups", 1), dim) / 2
    return changed + adapter.affine_s.reshape(-1, *spatial) if "s" in parts else changed


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_forward_and_merged_are_what_is_written(kind, parts):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    model = get_peft_model(Single(layer), config(parts))
    adapter = model.base_model.model.layer.adapters["default"]
    expected = by_hand(layer, adapter, parts, x)
    differs(expected, layer(x))
    same(model(x), expected)
    model.merge_adapter(safe_merge=True)
    same(layer(x), expected)
    model.unmerge_adapter()
    same(model(x), expected)


@pytest.mark.parametrize("parts", ["d", "ds", "i", "s", "dsi"])
def test_a_merged_model_is_itself_again(parts):
    net = Single(nn.Linear(6, 8, bias=False))
    before = anatomy(net)
    model = get_peft_model(net, config(parts))
    model.merge_adapter()
    # A bias appears for a shift alone.
    assert (net.layer.base_layer.bias is not None) == ("s" in parts)
    model.unmerge_adapter()
    model.unload()
    assert_as_before(net, before)


def test_the_output_of_an_embedding_is_scaled():
    layer, ids = nn.Embedding(11, 6, padding_idx=2), torch.randint(11, (3, 4))
    model = get_peft_model(Single(layer), config("dm"))
    adapter = model.base_model.model.layer.adapters["default"]
    expected = layer(ids) * adapter.affine_d + neighbours(layer(ids), 1) / 2
    same(model(ids), expected)
    model.merge_adapter()
    same(layer(ids), expected)


OTHERS = {
    "delta": PlainConfig,
    "delta of the bias": ShiftedConfig,
    "transform of inputs": TurnedConfig,
    "transform of outputs": FlippedConfig,
}


def folded(layer, parts):
    """What the layer does by its weight and bias alone, with adapters folded in one after another."""
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    for part in parts:
        weight, bias = part.fold(weight, bias)
    return functools.partial(nn.functional.linear, weight=weight, bias=bias)


@pytest.mark.parametrize("parts", ["d", "s", "i", "dms", "dmsi"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("first", ["this", "other"])
def test_beside_other_methods_the_order_of_activation_counts(parts, other, first):
    names = ["this", "other"] if first == "this" else ["other", "this"]
    model, x = get_peft_model(Single(nn.Linear(6, 8)), config(parts), "this"), torch.randn(3, 6)
    model.add_adapter("other", OTHERS[other](target_modules=["layer"]))
    model.set_adapter(names)
    layer = model.base_model.model.layer
    expected = folded(layer, [layer.adapters[name] for name in names])(x)
    same(model(x), expected)
    model.merge_adapter()
    same(layer.base_layer(x), expected)


def test_scaled_inputs_leave_the_bias_alone():
    def adapter(parts):
        return get_peft_model(Single(nn.Linear(6, 8)), config(parts)).base_model.model.layer.adapters["default"]

    assert {parts: adapter(parts).changes_bias for parts in PARTS} == {parts: parts != "i" for parts in PARTS}


@pytest.mark.parametrize("parts", ["d", "s", "i", "dsi"])
def test_a_convolution_s_output_keeps_its_layout(parts):
    """Models call view() on it."""
    model = get_peft_model(Single(nn.Conv2d(4, 8, 3)), config(parts))
    assert model(torch.randn(2, 4, 7, 5)).is_contiguous()
    channels_last = torch.randn(2, 4, 7, 5).to(memory_format=torch.channels_last)
    layout = Single(nn.Conv2d(4, 8, 3))(channels_last).stride()
    assert model(channels_last).stride() == layout


@pytest.mark.parametrize("parts", ["ds", "dms", "i"])
def test_an_attention_that_reads_the_layer_s_weights_sees_the_effect(parts):
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    cls = MixingConfig if "m" in parts else AffineConfig
    model = get_peft_model(Single(attention), cls(target_modules=["out_proj"], parts=parts))
    with model.disable_adapter():
        frozen = model(x, x, x)[0]
    expected = model(x, x, x)[0]
    differs(expected, frozen)
    model.merge_adapter()
    same(model(x, x, x)[0], expected)
    model.unload()
    same(attention(x, x, x)[0], frozen)


@pytest.mark.parametrize("kept", [True, False])
def test_coarse_weights_are_scaled_in_the_adapter_s_dtype(kept):
    layer, x = nn.Linear(6, 8).to(torch.bfloat16), torch.randn(3, 6, dtype=torch.bfloat16)
    model = get_peft_model(Single(layer), config("dsi"), autocast_adapter_dtype=kept)
    expected = model(x)
    assert expected.dtype is torch.bfloat16
    model.merge_adapter()
    assert layer.weight.dtype is layer.bias.dtype is torch.bfloat16
    torch.testing.assert_close(layer(x), expected, atol=0.1, rtol=0.05)


def test_rows_of_a_batch_have_their_own_factors():
    model, x = get_peft_model(Single(nn.Conv1d(4, 6, 3)), config("dsi"), "one"), torch.randn(3, 4, 9)
    model.add_adapter("two", config("dm"))
    model.eval()
    mixed = model(x, adapter_names=["two", "__base__", "one"])
    for row, names in enumerate(["two", None, "one"]):
        if names is None:
            with model.disable_adapter():
                same(mixed[row], model(x)[row])
        else:
            model.set_adapter(names)
            same(mixed[row], model(x)[row])
