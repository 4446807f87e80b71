"""The mathematics, what is refused, and what training keeps in memory."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore_loha import LoHaAdapter, LoHaConfig


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return LoHaAdapter(base, LoHaConfig(init_weights=False, **options))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3), nn.Embedding(9, 4)]
)
def test_delta_is_the_entrywise_product_of_two_matrices(layer):
    adapter = make(layer, r=3, alpha=6)
    first, second = adapter.hada_w1_a @ adapter.hada_w1_b, adapter.hada_w2_a @ adapter.hada_w2_b
    expected = 2 * (first * second).reshape(adapter.base.weight_shape)
    torch.testing.assert_close(adapter.canonical_delta(), expected)


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (3, 2), groups=2), nn.Conv3d(4, 6, (1, 2, 3))])
def test_in_the_tucker_form_each_place_of_the_kernel_has_its_own_core(layer):
    adapter = make(layer, r=2, alpha=6, use_effective_conv2d=True)
    delta = adapter.canonical_delta().flatten(2)
    for place in range(delta.shape[2]):
        first = adapter.hada_w1_a.T @ adapter.hada_t1.flatten(2)[..., place] @ adapter.hada_w1_b
        second = adapter.hada_w2_a.T @ adapter.hada_t2.flatten(2)[..., place] @ adapter.hada_w2_b
        torch.testing.assert_close(delta[..., place], 3 * first * second)


def test_the_tucker_form_is_for_kernels_above_one():
    plain = make(nn.Conv2d(4, 6, 1), r=2)
    tucker = make(nn.Conv2d(4, 6, 1), r=2, use_effective_conv2d=True)
    assert {name: value.shape for name, value in plain.state_dict().items()} == {
        name: value.shape for name, value in tucker.state_dict().items()
    }


def test_its_rank_is_the_square_of_the_factors():
    assert torch.linalg.matrix_rank(make(nn.Linear(20, 30), r=3).canonical_delta()) == 9


def test_each_stacked_expert_has_a_delta_of_its_own():
    adapter = make(ParameterLayer(Holder(3, 5, 7), "weight"), r=2, alpha=4)
    delta = adapter.canonical_delta()
    for expert in range(3):
        a1, b1, a2, b2 = (getattr(adapter, f"hada_w{name}")[expert] for name in ("1_a", "1_b", "2_a", "2_b"))
        torch.testing.assert_close(delta[expert], 2 * (a1 @ b1) * (a2 @ b2))


def test_gradients_are_those_of_the_formula():
    adapter = make(nn.Conv2d(2, 3, 2), r=2, use_effective_conv2d=True).double()
    adapter.canonical_delta().square().sum().backward()
    given = [parameter.grad.clone() for parameter in adapter.parameters()]
    adapter.zero_grad()
    adapter._product().square().sum().backward()
    torch.testing.assert_close(given, [parameter.grad for parameter in adapter.parameters()])


def test_autograd_keeps_no_matrix_beside_delta():
    adapter, kept = make(nn.Linear(50, 40), r=2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        adapter.delta_weight()
    assert max(kept, default=0) < 50 * 40


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 6, 1), nn.Embedding(6, 4)])
def test_a_rank_above_both_sizes_is_refused_before_anything_changes(layer):
    net = nn.Sequential(layer)
    get_peft_model(nn.Sequential(layer), LoHaConfig(r=6, target_modules=["0"])).unload()
    with pytest.raises(ConfigError, match=r"LoHaConfig\.r: 7 is above both sizes .*rank_pattern"):
        get_peft_model(net, LoHaConfig(r=7, target_modules=["0"]))
    assert net[0] is layer
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert get_peft_model(net, LoHaConfig(r=7, target_modules=["0"], rank_pattern={"0": 2}))


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": "8"},
        {"rank_pattern": {"0": 0}},
        {"alpha_pattern": {"0": "a"}},
        {"rank_dropout": 1.0},
        {"module_dropout": -0.1},
        {"init_weights": "lycoris"},
        {"use_effective_conv2d": None},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"LoHaConfig\.{next(iter(options))}: "):
        LoHaConfig(**options)
