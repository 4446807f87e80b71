"""IA3 here and in HF PEFT."""

from functools import partial

import torch
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import convolutions, gpt2, llama, mlp
from peftcore_ia3.default_targets import FEEDFORWARD

X = torch.linspace(-2, 2, 96).sin().reshape(4, 3, 8)
IMAGES = torch.linspace(-9, 9, 392).sin().reshape(2, 4, 7, 7)
VOLUMES = torch.linspace(-9, 9, 2744).sin().reshape(2, 4, 7, 7, 7)
IDS = torch.arange(10).reshape(2, 5)


def depthwise():
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 6, 2, groups=6), nn.Tanh())


MODELS = {
    "linear": (mlp, X),
    "conv2d": (partial(convolutions, 2), IMAGES),
    "conv2d, depthwise": (depthwise, IMAGES),
    "conv3d": (partial(convolutions, 3), VOLUMES),
}
TRANSFORMERS = {
    "llama, default targets": (llama, {}),
    "llama, default feedforward modules": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "llama, by expression": (
        llama,
        {"target_modules": r".*(v|gate)_proj", "feedforward_modules": r".*\.1\..*gate_proj"},
    ),
    "gpt2, default targets": (gpt2, {"fan_in_fan_out": True}),
    "gpt2, list": (gpt2, {"target_modules": r".*\.(c_attn|c_proj)", "feedforward_modules": ["mlp.c_proj"]}),
}


class TestParity(ParityTests):
    method = "ia3"
    cases = {
        **{
            f"{name}, {feedforward!r} feedforward": ParityCase(
                build, x, {"target_modules": ["0", "2"], "feedforward_modules": feedforward}
            )
            for name, (build, x) in MODELS.items()
            for feedforward in (["0"], "2")
        },
        "linear, random start": ParityCase(
            mlp, X, {"target_modules": ["0", "2"], "feedforward_modules": [], "init_ia3_weights": False}
        ),
        **{name: ParityCase(build, IDS, options, 0.3) for name, (build, options) in TRANSFORMERS.items()},
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(2, 3000), nn.Linear(3000, 2)),
            options={"target_modules": ["0", "1"], "feedforward_modules": ["1"], "init_ia3_weights": init},
        )
        for init in (True, False)
    }


def test_the_usual_feedforward_modules_are_hf_peft_s():
    assert FEEDFORWARD == TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
