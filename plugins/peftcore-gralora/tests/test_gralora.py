"""The mathematics, and what is refused."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot
from peftcore_gralora import GraloraAdapter, GraloraConfig

OPTIONS = [{"r": 4}, {"r": 2, "gralora_k": 1}, {"r": 4, "hybrid_r": 3}]


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return GraloraAdapter(base, GraloraConfig(alpha=7, init_weights=False, **options))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(10, 4)], ids=repr
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_block_has_factors_of_its_own(layer, options):
    adapter = make(layer, **options)
    (out, into), k = adapter.base.matrix_shape, options.get("gralora_k", 2)
    rank, height, width = options["r"] // k, out // k, into // k
    delta = adapter.canonical_delta().reshape(out, into)
    if "hybrid_r" in options:
        delta = delta - 7 / 7 * adapter.gralora_B_general.weight @ adapter.gralora_A_general.weight
    scaling = 7 / (options["r"] + options.get("hybrid_r", 0))
    for p in range(k):
        for g in range(k):
            a = adapter.gralora_A[g][:, p * rank : (p + 1) * rank]
            b = adapter.gralora_B[p][g * rank : (g + 1) * rank]
            block = delta[p * height : (p + 1) * height, g * width : (g + 1) * width]
            torch.testing.assert_close(block, scaling * (a @ b).T)


def test_its_rank_is_above_that_of_lora_with_as_many_parameters():
    adapter = make(nn.Linear(32, 32), r=4, gralora_k=4)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 4 * (32 + 32)
    assert torch.linalg.matrix_rank(adapter.canonical_delta()) == 16


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("options", [*OPTIONS, {"r": 8, "gralora_k": 4}], ids=str)
def test_a_linear_layer_never_forms_delta(shape, options, monkeypatch):
    adapter, x = make(nn.Linear(8, 12), **options), torch.randn(shape)
    delta = adapter.canonical_delta()
    monkeypatch.setattr(adapter, "delta_weight", None)
    torch.testing.assert_close(adapter.delta_forward(x), x @ delta.T)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_stacked_expert_has_blocks_of_its_own(options):
    adapter, alone = make(ParameterLayer(Holder(3, 6, 8), "weight"), **options), make(nn.Linear(8, 6), **options)
    for expert in range(3):
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                parameter.copy_(adapter.get_parameter(name)[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


@pytest.mark.parametrize(
    ("layer", "options", "says"),
    [
        (nn.Linear(6, 4), {"r": 3, "gralora_k": 3}, "gralora_k: 3 does not divide the 4 outputs"),
        (nn.Conv2d(2, 6, 3), {"r": 4, "gralora_k": 4}, "gralora_k: 4 does not divide the 18 inputs"),
        (nn.Linear(6, 4), {"r": 8}, "r: 8 is above both sizes"),
        (nn.Linear(6, 4), {"r": 4, "hybrid_r": 7}, "hybrid_r: 7 is above both sizes"),
        (nn.MultiheadAttention(8, 2), {"r": 2, "gralora_dropout": 0.1}, "gralora_dropout: acts on the input"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused_before_anything_changes(layer, options, says):
    model = nn.ModuleDict({"first": nn.Linear(12, 12), "layer": layer})
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=rf"GraloraConfig\.{says}"):
        get_peft_model(model, GraloraConfig(target_modules=["first", "layer"], **options))
    before.assert_same(model, "After a config was refused", "")


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": 2.0},
        {"hybrid_r": -1},
        {"gralora_k": 0},
        {"gralora_k": 3, "r": 4},
        {"alpha": "64"},
        {"gralora_dropout": 1.0},
        {"init_weights": "zero"},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"GraloraConfig\.{next(iter(options))}: "):
        GraloraConfig(**options)
