"""Weight transforms among deltas, scales and bypasses: in every order, forward, merged and mixed are one definition."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import LayerConfig, PeftMethod, get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.bypass import Bypass
from peftcore.adapters.delta import MATRIX_KINDS
from peftcore.adapters.scale import OutputScale
from peftcore.adapters.transform import WeightTransform
from peftcore.exceptions import MergeError, NotMergeableError

from .methods import PlainConfig, ScaledConfig, ShiftedConfig
from .models import Single, differs, same


def mixing(size):
    return nn.Parameter(torch.eye(size) + 0.3 * torch.randn(size, size))


class InwardConfig(LayerConfig, method="inward"):
    pass


class Inward(WeightTransform):
    """W' = W R, by way of the input: a convolution's channels, a linear layer's features."""

    kinds = frozenset({"linear", "conv2d"})

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.inward_R = mixing(base.in_features)

    def transform(self, weight):
        return torch.einsum("oj...,ji->oi...", weight, self.inward_R)

    def pre(self, x):
        return x @ self.inward_R.T


class OutwardConfig(LayerConfig, method="outward"):
    pass


class Outward(WeightTransform):
    """W' = R W, by way of the output."""

    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.outward_R = mixing(base.out_features)

    def transform(self, weight):
        return torch.einsum("oj,j...->o...", self.outward_R, weight)

    def post(self, output):
        return output @ self.outward_R.T


class ThroughConfig(LayerConfig, method="through"):
    pass


class Through(Inward):
    """W' = R W S, by way of both."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.through_R = mixing(base.out_features)

    def transform(self, weight):
        return torch.einsum("oj,j...->o...", self.through_R, super().transform(weight))

    def post(self, output):
        return output @ self.through_R.T


class NormedConfig(LayerConfig, method="normed"):
    pass


class Normed(WeightTransform):
    """W' = W with rows of given lengths: not linear in W, so there is no way but the weight."""

    kinds = MATRIX_KINDS

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.normed_g = nn.Parameter(1 + torch.rand(base.weight_shape[0]))

    def transform(self, weight):
        rows = nn.functional.normalize(weight.flatten(1), dim=1)
        return (self.normed_g[:, None] * rows).reshape(weight.shape)


class StretchedConfig(LayerConfig, method="stretched"):
    pass


class Stretched(OutputScale):
    """y' = s y + b, the bias of the layer included."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.stretched_s = nn.Parameter(1 + torch.rand(base.out_features))
        self.stretched_b = nn.Parameter(torch.randn(base.out_features))

    def change_output(self, features):
        return features * self.stretched_s

    def shift(self):
        return self.stretched_b


class BesideConfig(LayerConfig, method="beside"):
    pass


class Beside(Bypass):
    """Adds what no weight can hold."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.beside_v = nn.Parameter(torch.randn(base.in_features))

    def change(self, x, output):
        return torch.tanh(x @ self.beside_v)[..., None] * output


class SieveConfig(LayerConfig, method="sieve"):
    pass


class Sieve(Normed):
    """Training leaves rows out."""

    def transform_in_call(self, weight):
        rows = self.transform(weight)
        return rows * torch.tensor([0.0, 1.0]).repeat(len(rows) // 2)[:, None] if self.training else rows


FAMILY = {
    "inward": (InwardConfig, Inward),
    "outward": (OutwardConfig, Outward),
    "through": (ThroughConfig, Through),
    "normed": (NormedConfig, Normed),
    "stretched": (StretchedConfig, Stretched),
    "beside": (BesideConfig, Beside),
    "sieve": (SieveConfig, Sieve),
}
CONFIGS = {name: config for name, (config, _) in FAMILY.items()}
CONFIGS |= {"plain": PlainConfig, "scaled": ScaledConfig, "shifted": ShiftedConfig}


@pytest.fixture(autouse=True, scope="module")
def the_family():
    for name, (config, adapter) in FAMILY.items():
        register_peft_method(PeftMethod(name=name, config_cls=config, adapter_cls=adapter))
    yield
    for name in FAMILY:
        unregister_peft_method(name)


def model_with(sorts, layer=None, seed=0):
    """One layer with an adapter of each sort, all active in that order; a sort may come several times."""
    torch.manual_seed(seed)
    model = Single(layer or nn.Linear(5, 6))
    names = [f"{sort}{number}" for number, sort in enumerate(sorts)]
    for name, sort in zip(names, sorts, strict=True):
        config = CONFIGS[sort](target_modules=["layer"])
        if name == names[0]:
            model = get_peft_model(model, config, name)
        else:
            model.add_adapter(name, config)
    model.set_adapter(names)
    return model.eval(), names


def defined(model, names):
    """The definition, written out for a weight with two or more dimensions, canonical ``[out, in, ...]``."""
    layer = model.base_model.model.layer
    base = layer.base
    frozen = weight = base.weight().detach().float()
    bias = None if base.bias is None else base.bias.detach().float()
    for name in names:
        part = layer.adapters[name]
        if isinstance(part, Outward):
            weight = (part.outward_R @ weight.flatten(1)).reshape(weight.shape)
        elif isinstance(part, Inward):
            weight = torch.einsum("oj...,ji->oi...", weight, part.inward_R)
            if isinstance(part, Through):
                weight = (part.through_R @ weight.flatten(1)).reshape(weight.shape)
        elif isinstance(part, Normed):
            lengths = weight.flatten(1).norm(dim=1)
            weight = (part.normed_g / lengths).reshape(-1, *[1] * (weight.dim() - 1)) * weight
        elif isinstance(part, Stretched):
            weight = part.stretched_s.reshape(-1, *[1] * (weight.dim() - 1)) * weight
            bias = part.stretched_b if bias is None else part.stretched_s * bias + part.stretched_b
        elif name.startswith("plain"):
            weight = weight + (part.plain_B @ part.plain_A).reshape(weight.shape)
        elif name.startswith("scaled"):
            weight = weight + part.scaled_s.reshape(-1, *[1] * (weight.dim() - 1)) * frozen
        else:
            weight = weight + part.shifted_w.reshape(weight.shape)
            bias = part.shifted_b if bias is None else bias + part.shifted_b
    return weight, bias


def output_of(base, x, weight, bias):
    output = base.apply(weight, x)
    return output if bias is None else base.add_bias(output, bias)


SORTS = ["inward", "outward", "through", "normed", "stretched", "plain", "scaled", "shifted"]
LAYERS = {
    "linear": (lambda: nn.Linear(5, 6), torch.randn(4, 3, 5)),
    "without a bias": (lambda: nn.Linear(5, 6, bias=False), torch.randn(4, 3, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), torch.randn(4, 4, 5, 3)),
}


def check_all_ways(sorts, layer, x, merged):
    """Forward, merged up to some place and then whole, taken out again, and row by row: all are the definition."""
    model, names = model_with(sorts, layer)
    base = model.base_model.model.layer.base
    stored = base.read_weight().detach().clone()
    with torch.no_grad():
        weight, bias = defined(model, names)
        expected = output_of(base, x, weight, bias)
        same(model(x), expected)
        alone = [output_of(base, x, *defined(model, [name])) for name in names]
        rows = [*names, "__base__"] * len(x)
        mixed = model(x, adapter_names=rows[: len(x)])
        alone.append(output_of(base, x, *defined(model, [])))
        same(mixed, torch.stack([alone[row % len(alone)][row] for row in range(len(x))]))
        if merged:
            model.merge_adapter(names[:merged])
            same(model(x), expected)
        model.merge_adapter()
        same(model(x), expected)
        same(base.read_weight(), weight)
        model.unmerge_adapter()
        same(model(x), expected)
        same(base.read_weight(), stored)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_adapters_in_any_order(data):
    sorts = data.draw(st.lists(st.sampled_from(SORTS), min_size=1, max_size=5), label="sorts")
    make, x = LAYERS[data.draw(st.sampled_from([*LAYERS]), label="layer")]
    check_all_ways(sorts, make(), x, data.draw(st.integers(0, len(sorts)), label="merged"))


ORDERS = [*itertools.permutations(["inward", "outward", "plain"]), *itertools.permutations(["through", "shifted"])]
ORDERS += [*itertools.permutations(["normed", "inward", "stretched"]), ("outward", "inward", "outward", "inward")]


@pytest.mark.parametrize("sorts", ORDERS, ids="-".join)
def test_orders_that_matter(sorts):
    for merged in range(len(sorts) + 1):
        check_all_ways(sorts, nn.Linear(5, 6), torch.randn(4, 5), merged)


@pytest.mark.parametrize("first", ["inward", "outward", "through", "normed"])
def test_order_is_that_of_the_list(first):
    x = torch.randn(4, 5)
    for second in ("inward", "outward", "through", "normed", "plain"):
        model, names = model_with([first, second])
        there = model(x)
        model.set_adapter(names[::-1])
        same(model(x), output_of(model.base_model.model.layer.base, x, *defined(model, names[::-1])))
        if {first, second} not in ({"inward", "outward"}, {"normed"}):  # rows and columns do not meet
            differs(model(x), there)


EMBEDDINGS = {
    "embedding": (lambda: nn.Embedding(9, 4), ["outward", "normed", "plain", "scaled"]),
    "padded": (lambda: nn.Embedding(9, 4, padding_idx=0), ["outward", "plain"]),
    "max_norm": (lambda: nn.Embedding(9, 4, max_norm=1.0), ["outward", "normed", "plain"]),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(name):
    make, sorts = EMBEDDINGS[name]
    x = torch.tensor([[0, 3], [8, 1], [3, 3]])
    for order in itertools.permutations(sorts, 2):
        check_all_ways(order, make(), x, 1)


@pytest.mark.parametrize("order", list(itertools.permutations(["outward", "normed", "plain"])), ids="-".join)
def test_an_attention_runs_with_the_transformed_projection(order):
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    model, names = model_with(order, attention)
    x = torch.randn(2, 3, 4)
    output = model(x, x, x)[0]
    with torch.no_grad():
        weight, bias = defined(model, names)
    model.merge_adapter()
    same(attention.in_proj_weight, weight)
    same(attention.in_proj_bias, bias)
    same(model(x, x, x)[0], output)


@pytest.mark.parametrize("sort", ["inward", "outward", "through", "normed"])
@pytest.mark.parametrize("above", [False, True])
def test_what_no_weight_can_hold_goes_with_transforms(sort, above):
    """It stands around what is folded for a call, and merging is refused where it would change the order."""
    sorts = ["beside", sort] if above else [sort, "beside"]
    model, names = model_with(sorts)
    x = torch.randn(4, 5)
    layer = model.base_model.model.layer
    beside = layer.adapters[f"beside{sorts.index('beside')}"]
    transform = layer.adapters[f"{sort}{sorts.index(sort)}"]
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    if not above or sort == "normed":
        inner = nn.functional.linear(x, transform.transform(weight), bias)
        expected = inner * (1 + torch.tanh(x @ beside.beside_v))[:, None]
    else:
        turned = transform.pre(x)
        inner = nn.functional.linear(turned, weight, bias) * (1 + torch.tanh(turned @ beside.beside_v))[:, None]
        expected = transform.post(inner - bias) + bias
    same(model(x), expected)
    with pytest.raises(NotMergeableError):
        model.merge_adapter()
    if above:
        with pytest.raises(MergeError):
            model.merge_adapter([names[1]])
    else:
        model.merge_adapter([names[0]])
    same(model(x), expected)


def test_what_training_leaves_out_is_left_out_of_calls_and_never_of_merged_weights():
    model, _ = model_with(["plain", "sieve"])
    x = torch.randn(4, 5)
    whole = model(x)
    model.train()
    bias = model.base_model.model.layer.base_layer.bias
    same(model(x)[:, 0::2], bias[0::2].expand(4, 3))
    same(model(x)[:, 1::2], whole[:, 1::2])
    model.merge_adapter()
    same(model(x), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sort", ["inward", "outward", "through", "normed"])
def test_a_coarse_layer_puts_out_its_own_dtype(sort, dtype):
    model, names = model_with([sort], nn.Linear(5, 6).to(dtype))
    x = torch.randn(4, 5).to(dtype)
    with torch.no_grad():
        weight, bias = defined(model, names)
        output = model(x)
    assert output.dtype == dtype
    expected = nn.functional.linear(x.float(), weight, bias)
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("sort", ["inward", "outward", "through", "normed"])
def test_gradients_reach_transforms_and_what_stands_below(sort):
    model, names = model_with(["plain", sort])
    x = torch.randn(4, 5)
    layer = model.base_model.model.layer
    parts = [p.requires_grad_() for name in names for p in layer.adapters[name].parameters()]
    by_forward = torch.autograd.grad(model(x).square().sum(), parts)
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    for name in names:
        weight, bias = layer.adapters[name].fold(weight, bias)
    by_weight = torch.autograd.grad(nn.functional.linear(x, weight, bias).square().sum(), parts)
    for one, other in zip(by_forward, by_weight, strict=True):
        assert one.abs().sum() > 0
        same(one, other)
