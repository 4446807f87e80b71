"""The mathematics, the sizes, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore_lokr import LoKrAdapter, LoKrConfig
from peftcore_lokr.adapter import divisors


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return LoKrAdapter(base, LoKrConfig(init_weights=False, **options))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@given(st.integers(1, 5000), st.integers(-1, 100).filter(bool))
def test_divisors_multiply_to_the_size_and_keep_to_the_factor(size, factor):
    first, second = divisors(size, factor)
    assert first * second == size
    if factor > 0 and size % factor == 0:
        assert first == factor
    else:
        assert first <= second
        below = [number for number in range(first + 1, size + 1) if size % number == 0]
        assert not any(number <= size // number and (factor < 0 or number <= factor) for number in below)


@pytest.mark.parametrize("factor", [-1, 2, 3, 7])
@pytest.mark.parametrize("options", [{"r": 1}, {"r": 1, "decompose_both": True}, {"r": 100}], ids=str)
def test_delta_is_the_kronecker_product(factor, options):
    adapter = make(nn.Linear(24, 36), alpha=6, decompose_factor=factor, **options)
    state = adapter.state_dict()
    c = state["lokr_w1"] if "lokr_w1" in state else state["lokr_w1_a"] @ state["lokr_w1_b"]
    d = state["lokr_w2"] if "lokr_w2" in state else state["lokr_w2_a"] @ state["lokr_w2_b"]
    torch.testing.assert_close(adapter.canonical_delta(), 6 / options["r"] * torch.kron(c, d))


CONVS = [nn.Conv1d(12, 16, 3), nn.Conv2d(12, 16, (3, 2)), nn.Conv2d(24, 16, 3, groups=2), nn.Conv3d(12, 16, (1, 2, 3))]


@pytest.mark.parametrize("layer", CONVS, ids=str)
@pytest.mark.parametrize("options", [{"r": 1}, {"r": 1, "use_effective_conv2d": True}, {"r": 50}], ids=str)
def test_each_place_of_a_kernel_has_a_kronecker_product_with_the_same_c(layer, options):
    adapter = make(layer, alpha=2 * options["r"], **options)
    delta = adapter.canonical_delta().flatten(2)
    if options["r"] == 50:
        d = adapter.lokr_w2.flatten(2)
    elif adapter.lokr_t2 is None:
        d = (adapter.lokr_w2_a @ adapter.lokr_w2_b).reshape(4, 4, -1)
    else:
        d = torch.einsum("ijk,io,jn->onk", adapter.lokr_t2.flatten(2), adapter.lokr_w2_a, adapter.lokr_w2_b)
    assert (adapter.lokr_w1.shape, d.shape[:2]) == ((4, 3), (4, 4))
    for place in range(delta.shape[2]):
        torch.testing.assert_close(delta[..., place], 2 * torch.kron(adapter.lokr_w1, d[..., place]))


def test_each_stacked_expert_has_a_delta_of_its_own():
    adapter = make(ParameterLayer(Holder(3, 6, 8), "weight"), r=1, alpha=2)
    delta = adapter.canonical_delta()
    for expert in range(3):
        d = adapter.lokr_w2_a[expert] @ adapter.lokr_w2_b[expert]
        torch.testing.assert_close(delta[expert], 2 * torch.kron(adapter.lokr_w1[expert], d))


@pytest.mark.parametrize("options", [{"r": 1}, {"r": 1, "decompose_both": True}, {"r": 100}], ids=str)
def test_a_linear_layer_never_forms_the_product(options, monkeypatch):
    adapter = make(nn.Linear(24, 36), **options)
    x, delta = torch.randn(2, 3, 24), adapter.canonical_delta()
    monkeypatch.setattr(adapter, "delta_weight", None)
    torch.testing.assert_close(adapter.delta_forward(x), x @ delta.T)


@pytest.mark.parametrize("options", [{}, {"rank_dropout": 0.5, "module_dropout": 0.3}], ids=str)
def test_gradients_are_those_of_the_product(options):
    adapter = make(nn.Linear(24, 36), r=1, **options).double().train()
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    wanted = [x, *adapter.parameters()]
    torch.manual_seed(0)
    given = torch.autograd.grad(adapter.delta_forward(x).square().sum(), wanted)
    torch.manual_seed(0)
    output = adapter.dropped(x @ adapter.canonical_delta().T)
    torch.testing.assert_close(given, torch.autograd.grad(output.square().sum(), wanted))


@pytest.mark.parametrize(("scale", "kept"), [(False, {1.0}), (True, {4.0, 2.0, 4 / 3, 1.0})])
def test_features_that_rank_dropout_keeps_are_scaled_if_asked(scale, kept):
    adapter = make(nn.Linear(6, 4), r=1, rank_dropout=0.5, rank_dropout_scale=scale).eval()
    x = torch.randn(3, 6)
    whole = adapter.delta_forward(x)
    adapter.train()
    shares = torch.stack([(adapter.delta_forward(x) / whole)[0] for _ in range(50)]).round(decimals=3)
    assert (
        {0.0}
        < set(shares.unique().tolist())
        <= {0.0} | {torch.tensor(share).round(decimals=3).item() for share in kept}
    )


def test_a_prime_size_leaves_c_a_number_and_d_the_weight():
    adapter = make(nn.Linear(7, 5), r=8)
    assert adapter.lokr_w1.shape == (1, 1) and adapter.lokr_w2.shape == (5, 7)


@pytest.mark.parametrize(("init", "zero"), [(True, ["lokr_w1", "lokr_w1_a"]), ("lycoris", ["lokr_w2", "lokr_w2_b"])])
@pytest.mark.parametrize("options", [{"r": 1, "decompose_both": True}, {"r": 50}], ids=str)
def test_one_factor_starts_at_zero(init, zero, options):
    adapter = LoKrAdapter(adapt(nn.Linear(24, 36)), LoKrConfig(init_weights=init, **options))
    assert [name for name, value in adapter.state_dict().items() if not value.any()] == [
        name for name in adapter.state_dict() if name in zero
    ]
    assert not adapter.canonical_delta().any()


@pytest.mark.parametrize(
    "options",
    [
        {"decompose_factor": 0},
        {"decompose_factor": -2},
        {"decompose_both": 1},
        {"rank_dropout_scale": "yes"},
        {"init_weights": "gaussian"},
        {"r": 0},
        {"rank_pattern": {"0": "2"}},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"LoKrConfig\.{next(iter(options))}: "):
        LoKrConfig(**options)


def test_a_dropout_that_can_not_act_is_refused_before_anything_changes():
    layer = nn.MultiheadAttention(8, 2)
    net = nn.Sequential(nn.Linear(8, 8), layer)
    with pytest.raises(ConfigError, match=r"LoKrConfig\.module_dropout: .*MultiheadAttention"):
        get_peft_model(net, LoKrConfig(module_dropout=0.1, target_modules=["0", "1"]))
    assert type(net[0]) is nn.Linear and net[1] is layer
    assert all(parameter.requires_grad for parameter in net.parameters())
