"""FourierFT here and in HF PEFT."""

from functools import partial

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import gpt2, llama, mlp

IDS = torch.arange(12).reshape(2, 6)
MODELS = {
    "mlp": (mlp, torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8), ["0", "2", "4"]),
    "llama": (partial(llama, num_hidden_layers=1), IDS, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (gpt2, IDS, ["c_attn"]),
}
OPTIONS = {
    "plain": {"n_frequency": 20},
    "options": {"n_frequency": 12, "scaling": 40.0, "random_loc_seed": 3, "init_weights": True, "bias": "fourier_only"},
    "patterns": {"n_frequency": 20, "n_frequency_pattern": {"0": 7, "q_proj": 30}},
}


class TestParity(ParityTests):
    method = "fourierft"
    cases = {
        f"{name}, {option}": ParityCase(
            build,
            x,
            {**options, "target_modules": targets, "fan_in_fan_out": name == "gpt2"},
            model_scale=0.1 if name == "gpt2" else 0.0,
        )
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"n_frequency": 3000, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
    }
