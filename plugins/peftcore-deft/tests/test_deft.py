"""DEFT's and PaRa's own mathematics, and what is refused."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_deft import DeftAdapter, DeftConfig

LAYERS = [nn.Linear(6, 8), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 5)]


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    adapter = DeftAdapter(base, DeftConfig(**{"r": 3, **options}))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return adapter


def matrices(adapter):
    """Return the frozen weight and the changed one, as matrices."""
    weight = adapter.base.weight()
    return tuple(w.detach().reshape(adapter.base.matrix_shape) for w in (weight, adapter.fold(weight, None)[0]))


def config(**options):
    return DeftConfig(**{"r": 3, "target_modules": ["0"], **options})


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_the_formula(layer):
    adapter = make(layer, alpha=5)
    weight, changed = matrices(adapter)
    p, r = adapter.deft_P.detach(), adapter.deft_R.detach()
    torch.testing.assert_close(changed, weight - p @ p.relu().T @ weight + p @ r * 5 / 3)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_outside_of_an_orthonormal_subspace_the_weight_stays(layer):
    adapter = make(layer, decomposition_method="qr")
    weight, changed = matrices(adapter)
    basis = torch.linalg.svd(adapter.deft_P.detach(), full_matrices=False)[0]
    inside = basis @ basis.T
    torch.testing.assert_close(changed - inside @ changed, weight - inside @ weight, atol=1e-5, rtol=1e-4)
    q = adapter.subspace()[0].detach()
    torch.testing.assert_close(inside @ changed, q @ adapter.deft_R.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_para_lowers_the_rank_by_that_of_the_subspace(layer):
    adapter = make(layer, para=True, decomposition_method="qr")
    assert set(adapter.state_dict()) == {"deft_P"}
    weight, changed = matrices(adapter)
    assert torch.linalg.matrix_rank(changed, atol=1e-4) == min(weight.shape[0] - 3, weight.shape[1])
    torch.testing.assert_close(changed.T @ adapter.deft_P.detach(), torch.zeros(weight.shape[1], 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["relu", "qr"])
def test_each_stacked_expert_has_a_subspace_of_its_own(method):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6, 4))

    holder = Holder()
    adapter = make(ParameterLayer(holder, "weight"), decomposition_method=method)
    alone = make(nn.Linear(4, 6), decomposition_method=method)
    for expert in range(3):
        with torch.no_grad():
            alone.base.layer.weight.copy_(holder.weight[expert])
            for name, parameter in alone.named_parameters():
                parameter.copy_(adapter.get_parameter(name)[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3)], ids=repr)
def test_what_is_dropped_is_missed_by_the_injection_alone(layer):
    adapter, para = make(layer, deft_dropout=0.5), make(layer, para=True)
    with torch.no_grad():
        para.deft_P.copy_(adapter.deft_P)
    x = torch.randn(2, *{nn.Linear: (6,), nn.Conv1d: (4, 5), nn.Conv2d: (2, 5, 5)}[type(layer)])
    torch.manual_seed(4)
    output = adapter.delta_forward(x)
    torch.manual_seed(4)
    dropped = nn.functional.dropout(x, 0.5)
    injection = (adapter.deft_P @ adapter.deft_R).reshape(adapter.base.weight_shape)
    expected = para.delta_forward(x) + adapter.base.apply(injection, dropped)
    torch.testing.assert_close(output, expected)
    adapter.eval()
    torch.testing.assert_close(adapter.delta_forward(x), adapter.base.apply(adapter.canonical_delta(), x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"para": True}, {"decomposition_method": "qr", "alpha": 5}], ids=str)
def test_what_the_layer_has_made_of_its_input_is_used_while_it_is_smaller_than_the_weight(bias, options, monkeypatch):
    layer, x = nn.Linear(6, 8, bias=bias), torch.randn(2, 2, 6)
    adapter = make(layer, **options)
    adapter.base.layer.requires_grad_(False)
    expected = adapter.delta_forward(x)
    many = torch.randn(7, 6)
    expected_of_many = adapter.delta_forward(many)
    torch.testing.assert_close(adapter.delta_beside(layer(many), many), expected_of_many)
    monkeypatch.setattr(adapter, "factors", lambda: pytest.fail("a product with the weight was formed"))
    torch.testing.assert_close(adapter.delta_beside(layer(x), x), expected)


def test_what_a_layer_makes_with_something_merged_is_not_taken_for_the_frozen_weight_s():
    adapter, x = make(nn.Linear(6, 8)), torch.randn(2, 6)
    layer = adapter.base.layer.requires_grad_(False)
    expected = adapter.delta_forward(x)
    adapter.base.kept = layer.weight.detach().clone(), layer.bias
    with torch.no_grad():
        layer.weight.add_(1)
    torch.testing.assert_close(adapter.delta_beside(layer(x), x), expected)
    hooked = make(nn.Linear(6, 8))
    hooked.base.layer.requires_grad_(False).register_forward_hook(lambda module, args, output: output * 3)
    torch.testing.assert_close(hooked.delta_beside(hooked.base.layer(x), x), hooked.delta_forward(x))


def test_a_subspace_has_at_most_the_outputs_for_dimensions():
    adapter = make(nn.Linear(8, 4), r=6, alpha=3)
    assert adapter.deft_P.shape == (4, 4) and adapter.deft_R.shape == (4, 8)
    assert adapter.scaling == 3 / 6


def test_both_see_the_frozen_weight_while_others_are_merged():
    x, options = torch.randn(3, 6), {"decomposition_method": "qr"}
    model = get_peft_model(nn.Sequential(nn.Linear(6, 8)), config(**options)).eval()
    model.add_adapter("other", config(para=True, **options))
    changes, frozen = [], model.get_base_model()[0].base_layer(x)
    for seed, name in enumerate(("default", "other")):
        perturb(model, name, seed=seed)
        model.set_adapter(name)
        changes.append(model(x) - frozen)
    model.set_adapter(["default", "other"])
    both = model(x)
    torch.testing.assert_close(both, frozen + sum(changes))
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(x), both)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": 2.0}, "r"),
        ({"decomposition_method": "svd"}, "decomposition_method"),
        ({"init_scale": -1.0}, "init_scale"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": "8"}, "alpha"),
        ({"para": "yes"}, "para"),
        ({"deft_dropout": 1.0}, "deft_dropout"),
        ({"init_weights": None}, "init_weights"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"DeftConfig\.{field}: "):
        config(**options)


def test_a_rank_above_both_sizes_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(6, 4))
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"DeftConfig\.r: 7 is above both sizes"):
        get_peft_model(model, config(r=7, target_modules=["0", "1"]))
    before.assert_same(model, "After a config was refused", "")


def test_dropout_is_refused_where_the_weight_is_used_as_a_whole():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ConfigError, match=r"DeftConfig\.deft_dropout.*MultiheadAttention"):
        get_peft_model(model, config(deft_dropout=0.1, target_modules=["attention"]))
