"""The mathematics of LoRA on each kind of layer, against dense formulas that are written out here."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from peftcore.base_layers import ParameterLayer, RowsLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore_lora import LoraAdapter, LoraConfig


class Holder(nn.Module):
    """A module with a bare parameter, which it multiplies its input by (by each, for a stack of experts)."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape), requires_grad=False)

    def forward(self, x):
        return torch.einsum("bi,...oi->...bo", x, self.weight)


class Conv1D(nn.Module):
    """As transformers' layer of this name: a linear layer whose weight is stored transposed."""

    def __init__(self, out_features, in_features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.randn(out_features))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


def ids(*shape):
    return torch.randint(0, 11, shape)


#: A layer of each kind that calls it with an input, and that input.
CALLED = {
    "linear": (lambda: nn.Linear(7, 5), lambda: torch.randn(3, 7)),
    "linear without bias, three dimensions": (lambda: nn.Linear(7, 5, bias=False), lambda: torch.randn(2, 3, 7)),
    "linear, one row": (lambda: nn.Linear(7, 5), lambda: torch.randn(7)),
    "linear, no rows": (lambda: nn.Linear(7, 5), lambda: torch.randn(0, 7)),
    "transposed linear": (lambda: Conv1D(5, 7), lambda: torch.randn(2, 3, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding="valid", dilation=2), lambda: torch.randn(2, 4, 11)),
    "conv1d of groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: torch.randn(2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), lambda: torch.randn(2, 4, 8, 7)),
    "conv2d, string padding": (lambda: nn.Conv2d(4, 6, (3, 1), padding="same"), lambda: torch.randn(2, 4, 8, 7)),
    "conv2d of groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), lambda: torch.randn(2, 4, 8, 7)),
    "conv2d, circular": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        lambda: torch.randn(2, 4, 8, 7),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), lambda: torch.randn(2, 2, 3, 4, 5)),
    "embedding": (lambda: nn.Embedding(11, 5), lambda: ids(2, 3)),
    "embedding with padding": (lambda: nn.Embedding(11, 5, padding_idx=1), lambda: ids(4)),
}
CONFIGS = {
    "plain": {"r": 2, "lora_alpha": 6},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "rank above the layer's": {"r": 20},
    "balanced": {"r": 2, "lora_alpha": 5, "conv_decomposition": "balanced"},
    "full": {"r": 20, "lora_alpha": 60, "full_matrix_if_smaller": True},
}


def make(layer, **options):
    """An adapter whose Δ isn't zero, in double precision."""
    base = layer if not isinstance(layer, nn.Module) else adapt(layer)
    adapter = LoraAdapter(base, LoraConfig(init_lora_weights=False, **options)).double()
    base.layer.double()
    return adapter


def run_with(base, weight, bias, x):
    """What the layer would compute if it had this weight and bias: the reference that knows nothing of LoRA."""
    other = adapt(copy.deepcopy(base.layer).requires_grad_(False))
    other.replace_(weight.detach())
    if bias is not None:
        other.set_bias_(bias.detach())
    return other.layer(x)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("kind", CALLED)
def test_acting_on_the_input_equals_the_folded_weight(kind, options):
    layer, x = CALLED[kind][0](), CALLED[kind][1]()
    adapter = make(layer, **options)
    x = x.double() if x.is_floating_point() else x
    expected = run_with(adapter.base, *adapter.fold(adapter.base.weight(), adapter.base.bias), x)
    torch.testing.assert_close(layer(x) + adapter.delta_forward(x), expected)
    assert expected.numel() == 0 or not torch.allclose(layer(x), expected)


@pytest.mark.parametrize("kind", [kind for kind in CALLED if not kind.startswith("embedding")])
def test_the_bias_of_b_is_scaled_and_folded(kind):
    layer, x = CALLED[kind][0](), CALLED[kind][1]().double()
    adapter = make(layer, r=4, lora_alpha=12, lora_bias=True)
    folded = adapter.fold(adapter.base.weight(), adapter.base.bias)
    before = 0 if adapter.base.bias is None else adapter.base.bias
    torch.testing.assert_close(folded[1], before + 3 * adapter.lora_B.bias)
    torch.testing.assert_close(layer(x) + adapter.delta_forward(x), run_with(adapter.base, *folded, x))


@given(
    out=st.integers(1, 9),
    into=st.integers(1, 9),
    rank=st.integers(1, 12),
    alpha=st.floats(0.5, 30),
    stabilised=st.booleans(),
    rows=st.integers(0, 4),
)
@settings(max_examples=50, deadline=None)
def test_a_linear_delta_is_the_scaled_product(out, into, rank, alpha, stabilised, rows):
    adapter = make(nn.Linear(into, out), r=rank, lora_alpha=alpha, use_rslora=stabilised)
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (a.shape, b.shape) == ((rank, into), (out, rank))
    scaling = alpha / math.sqrt(rank) if stabilised else alpha / rank
    torch.testing.assert_close(adapter.canonical_delta(), scaling * (b @ a))
    x = torch.randn(rows, into, dtype=torch.float64)
    torch.testing.assert_close(adapter.delta_forward(x), x @ adapter.canonical_delta().T)


def test_a_convolution_s_delta_mixes_the_channels_of_a_smaller_kernel():
    adapter = make(nn.Conv2d(4, 6, (3, 2)), r=5, lora_alpha=10)
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (a.shape, b.shape) == ((5, 4, 3, 2), (6, 5, 1, 1))
    torch.testing.assert_close(adapter.canonical_delta(), 2 * torch.einsum("or,rihw->oihw", b[..., 0, 0], a))


def test_a_grouped_convolution_keeps_its_groups_apart():
    adapter = make(nn.Conv1d(4, 6, 3, groups=2), r=4, lora_alpha=4)
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (a.shape, b.shape) == ((4, 2, 3), (6, 2, 1))
    for group in range(2):
        outputs, ranks = slice(3 * group, 3 * group + 3), slice(2 * group, 2 * group + 2)
        expected = torch.einsum("or,rik->oik", b[outputs, :, 0], a[ranks])
        torch.testing.assert_close(adapter.canonical_delta()[outputs], expected)


def test_the_balanced_delta_has_the_rank_of_its_matrix_view():
    adapter = make(nn.Conv2d(4, 6, (3, 5)), r=2, lora_alpha=4, conv_decomposition="balanced")
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (a.shape, b.shape) == ((2, 4, 1, 5), (6, 2, 3, 1))
    matrix = adapter.canonical_delta().permute(0, 2, 1, 3).reshape(6 * 3, 4 * 5)
    torch.testing.assert_close(matrix, 2 * b.squeeze(3).permute(0, 2, 1).reshape(18, 2) @ a.reshape(2, 20))
    assert torch.linalg.matrix_rank(matrix) == 2


def test_the_balanced_convolution_never_forms_its_kernel(monkeypatch):
    adapter = make(nn.Conv2d(4, 6, 3), r=2, conv_decomposition="balanced")
    monkeypatch.setattr(type(adapter.form), "product", None)
    assert adapter.delta_forward(torch.randn(1, 4, 5, 5).double()).shape == (1, 6, 3, 3)


def test_an_embedding_s_delta_is_the_product_by_token():
    adapter = make(nn.Embedding(11, 5), r=3, lora_alpha=6)
    assert [*adapter.state_dict()] == ["lora_embedding_A", "lora_embedding_B"]
    a, b = adapter.lora_embedding_A, adapter.lora_embedding_B
    assert (a.shape, b.shape) == ((3, 11), (5, 3))
    torch.testing.assert_close(adapter.delta_forward(torch.tensor([4, 0])), 2 * (b @ a).T[[4, 0]])


def test_attention_has_one_delta_for_query_key_and_value():
    adapter = make(nn.MultiheadAttention(8, 2), r=2, lora_alpha=4)
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (a.shape, b.shape) == ((2, 8), (24, 2))
    torch.testing.assert_close(adapter.canonical_delta(), 2 * b @ a)


@pytest.mark.parametrize("experts", [1, 3])
def test_each_stacked_expert_has_factors_of_its_own(experts):
    out, into, rank = 5, 7, 2
    adapter = make(ParameterLayer(Holder(experts, out, into), "weight"), r=rank, lora_alpha=4)
    a, b = adapter.lora_A.weight, adapter.lora_B.weight
    assert (a.shape, b.shape) == ((rank * experts, into), (out, rank * experts))
    for expert in range(experts):
        rows = a[rank * expert : rank * expert + rank]
        columns = b[:, expert::experts]
        torch.testing.assert_close(adapter.canonical_delta()[expert], 2 * columns @ rows)


def test_a_bare_matrix_is_as_a_linear_weight():
    adapter = make(ParameterLayer(Holder(5, 7), "weight"), r=2, lora_alpha=4)
    torch.testing.assert_close(adapter.canonical_delta(), 2 * adapter.lora_B.weight @ adapter.lora_A.weight)


def test_a_part_of_a_fused_layer_is_adapted_by_itself():
    fused = nn.Linear(7, 12)
    adapter = make(RowsLayer(adapt(fused), slice(4, 8)), r=2, lora_alpha=4)
    assert adapter.delta_forward(torch.randn(3, 7).double()).shape == (3, 4)
    assert adapter.canonical_delta().shape == (4, 7)


@pytest.mark.parametrize(("rank", "keys"), [(4, ["lora_A.weight", "lora_B.weight"]), (5, ["lora_B.weight"])])
def test_the_full_matrix_begins_where_it_is_smaller(rank, keys):
    # 6 · 12 = 72 entries, and factors of rank r have 18 r.
    adapter = make(nn.Linear(12, 6), r=rank, full_matrix_if_smaller=True)
    assert [*adapter.state_dict()] == keys


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
@pytest.mark.parametrize("options", [{}, {"full_matrix_if_smaller": True, "r": 20}, {"lora_bias": True}])
def test_the_model_is_unchanged_at_the_start(init, options):
    layer = nn.Linear(7, 5)
    adapter = LoraAdapter(adapt(layer), LoraConfig(init_lora_weights=init, **options))
    torch.testing.assert_close(adapter.delta_forward(torch.randn(4, 7)), torch.zeros(4, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", CALLED)
@pytest.mark.parametrize("options", [CONFIGS["plain"], CONFIGS["full"]], ids=["plain", "full"])
def test_training_reaches_every_parameter_and_nothing_else(kind, options):
    layer, x = CALLED[kind][0](), CALLED[kind][1]()
    if x.numel() == 0:
        x = torch.randn(2, 7)
    adapter = make(layer.requires_grad_(False), lora_bias=not kind.startswith("embedding"), **options)
    x = x.double() if x.is_floating_point() else x
    adapter.delta_forward(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_gradients_are_those_of_the_formula():
    adapter = make(nn.Conv2d(2, 3, 2), r=2, conv_decomposition="balanced")
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    a, b = adapter.factors()

    def act(a, b, x):
        return adapter.form.act(adapter.base, a, b, x, 1.5)

    assert torch.autograd.gradcheck(act, (a, b, x))


def test_the_scaling_may_be_set():
    adapter = make(nn.Linear(7, 5), r=2, lora_alpha=4)
    before = adapter.canonical_delta()
    adapter.scaling = 2 * adapter.scaling
    torch.testing.assert_close(adapter.canonical_delta(), 2 * before)
    x = torch.randn(3, 7).double()
    torch.testing.assert_close(adapter.delta_forward(x), F.linear(x, 2 * before))


def test_dropout_acts_on_the_input_while_training():
    adapter = make(nn.Linear(200, 5), r=2, lora_dropout=0.5)
    x = torch.ones(1, 200).double()
    torch.manual_seed(0)
    trained = adapter.delta_forward(x)
    torch.manual_seed(0)
    torch.testing.assert_close(trained, F.linear(F.dropout(x, 0.5), adapter.canonical_delta()))
    adapter.eval()
    torch.testing.assert_close(adapter.delta_forward(x), F.linear(x, adapter.canonical_delta()))


def test_dropout_exists_only_where_it_acts():
    assert "input_dropout" not in make(nn.Linear(7, 5))._modules
    adapter = make(nn.Embedding(11, 5), lora_dropout=0.5)
    assert "input_dropout" not in adapter._modules
    torch.testing.assert_close(adapter.delta_forward(torch.arange(11)), adapter.canonical_delta().T)


@pytest.mark.parametrize(
    ("layer", "options", "field"),
    [
        (lambda: nn.MultiheadAttention(8, 2), {"lora_dropout": 0.1}, "lora_dropout"),
        (lambda: ParameterLayer(Holder(5, 7), "weight"), {"lora_dropout": 0.1}, "lora_dropout"),
        (lambda: ParameterLayer(Holder(5, 7), "weight"), {"lora_bias": True}, "lora_bias"),
        (lambda: nn.MultiheadAttention(8, 2), {"lora_bias": True}, "lora_bias"),
        (lambda: nn.Embedding(11, 5), {"lora_bias": True}, "lora_bias"),
        (lambda: nn.Conv1d(4, 6, 3), {"init_lora_weights": "orthogonal"}, "init_lora_weights"),
        (lambda: ParameterLayer(Holder(2, 5, 7), "weight"), {"init_lora_weights": "orthogonal"}, "init_lora_weights"),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), {"r": 3}, "r"),
    ],
)
def test_what_a_layer_can_not_have_is_refused_by_field_and_layer(layer, options, field):
    layer = layer()
    base = adapt(layer) if isinstance(layer, nn.Module) else layer
    with pytest.raises(ConfigError, match=rf"LoraConfig\.{field}: .*{type(base.layer).__name__}"):
        LoraAdapter(base, LoraConfig(**options))


def test_a_frozen_adapter_may_have_been_trained_with_dropout():
    config = LoraConfig(lora_dropout=0.1, inference_mode=True)
    assert LoraAdapter(adapt(nn.MultiheadAttention(8, 2)), config).eval()


def test_every_kind_with_a_weight_can_be_adapted():
    layers = [nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv3d(2, 2, 1), nn.Embedding(2, 2)]
    layers += [nn.MultiheadAttention(2, 1), Conv1D(2, 2)]
    assert all(LoraAdapter.can_adapt(adapt(layer)) for layer in layers)


def test_an_adapter_on_the_meta_device_takes_a_saved_state():
    saved = make(nn.Linear(7, 5), r=2, lora_bias=True)
    with torch.device("meta"):
        empty = LoraAdapter(saved.base, LoraConfig(r=2, lora_bias=True))
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(saved.state_dict(), assign=True)
    torch.testing.assert_close(empty.canonical_delta(), saved.canonical_delta())


def test_a_copy_stands_by_itself():
    adapter = make(nn.Linear(7, 5), r=2)
    other = copy.deepcopy(adapter)
    before = other.canonical_delta()
    with torch.no_grad():
        adapter.lora_B.weight.zero_()
    torch.testing.assert_close(other.canonical_delta(), before)


def test_its_printed_form_says_what_it_is():
    assert repr(make(nn.Linear(7, 5), r=2, lora_alpha=3)).startswith(
        "LoraAdapter(\n  kind=linear, r=2, scaling=1.5, form=channels"
    )
