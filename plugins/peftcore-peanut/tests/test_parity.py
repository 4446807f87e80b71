"""PEANuT here and in HF PEFT."""

from functools import partial

import torch
from torch import nn
from transformers.activations import ACT2FN

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama, mlp
from peftcore_peanut.activations import ACTIVATIONS

X = torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8)
MODELS = {
    "mlp": (mlp, X, ["0", "2", "4"]),
    "llama": (partial(llama, num_hidden_layers=1), torch.arange(12).reshape(2, 6), ["q_proj", "v_proj", "down_proj"]),
}
OPTIONS = {
    "plain": {"r": 4},
    "one layer": {"r": 3, "depth": 1, "act_fn": "tanh", "scaling": 2.0},
    "three layers": {"r": 3, "depth": 3, "act_fn": "silu"},
}


class TestParity(ParityTests):
    method = "peanut"
    cases = {
        f"{name}, {option}": ParityCase(build, x, {"target_modules": targets, **options}, model_scale=0.3)
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 20, "depth": 2, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
    }


def test_activations_are_those_of_transformers():
    x = torch.linspace(-12, 12, 1001)
    for name, activation in ACTIVATIONS.items():
        torch.testing.assert_close(activation(x), ACT2FN[name](x), atol=1e-5, rtol=1e-5, msg=name)
