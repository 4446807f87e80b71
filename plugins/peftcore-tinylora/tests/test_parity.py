"""TinyLoRA here and in HF PEFT."""

import pytest
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import gpt2, mlp

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
OPTIONS = {
    **{f"tied {tied}": {"weight_tying": tied} for tied in (0.0, 0.34, 0.5, 1.0)},
    "projection from the seed": {"save_projection": False, "projection_seed": 7, "r": 3},
    "random start": {"init_weights": "uniform", "u": 1, "r": 1},
    "dropout": {"tinylora_dropout": 0.5, "modules_to_save": ["4"], "target_modules": ["0", "2"]},
}


def embeddings():
    return nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 12))


@pytest.mark.filterwarnings("ignore:Specified to not save")
class TestParity(ParityTests):
    method = "tinylora"
    perturbation = 1.0
    cases = {
        **{name: ParityCase(mlp, X, {"u": 4, "target_modules": ["4", "0", "2"], **o}) for name, o in OPTIONS.items()},
        "embedding": ParityCase(embeddings, IDS, {"u": 6, "target_modules": ["0", "1"]}),
        "gpt2": ParityCase(
            gpt2, IDS, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, model_scale=0.1
        ),
        "gpt2, its layers unsaid": ParityCase(gpt2, IDS, {"weight_tying": 0.5}, model_scale=0.1),
    }
    starts = {
        name: ParityCase(mlp, options={"u": 20_000, "r": 1, "target_modules": ["0"], **options})
        for name, options in {"zero": {}, "bound": {"init_weights": "uniform", "init_v_bound": 0.7}}.items()
    }

    def test_both_start_with_the_same_numbers(self, libraries):
        """But for v where it starts at random, and for the signs of singular vectors."""
        here, there = libraries.new_states()
        assert {name: tensor.shape for name, tensor in here.items()} == {n: t.shape for n, t in there.items()}
        for name, tensor in there.items():
            if name.endswith("tinylora_P"):
                torch.testing.assert_close(here[name], tensor)
            if name.endswith("tinylora_A"):
                a, b = name, name[:-1] + "B"
                torch.testing.assert_close(here[b] @ here[a], there[b] @ tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 5, 7, 11])
@pytest.mark.parametrize("tied", [0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0])
def test_the_same_layers_share_a_vector(layers, tied):
    options = {"r": 1, "u": 1, "weight_tying": tied, "target_modules": [str(n) for n in range(layers)]}
    case = ParityCase(lambda: nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)]), options=options)
    libraries = Libraries("tinylora", case)
    ours, theirs = libraries.ours(), libraries.theirs()
    here = [adapter.shared.vector(adapter.shared.number(adapter.base)).item() for adapter in adapters(ours, layers)]
    vectors = {name.rpartition(".")[2]: p.item() for name, p in theirs.named_parameters() if "tinylora_v" in name}
    there = []
    for n in range(layers):
        layer = theirs.base_model.model[n]
        a, b, p = (getattr(layer, f"tinylora_{part}")["default"] for part in "ABP")
        found = layer.get_delta_weight("default").norm() / (b @ p[0] @ a).norm()
        there.append(min(vectors.values(), key=lambda value: abs(abs(value) - found)))
    assert here == there


def adapters(model, layers):
    return [model.get_base_model()[n].adapters["default"] for n in range(layers)]
