"""DeLoRA here and in HF PEFT."""

from functools import partial

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama, mlp

MODELS = {
    "mlp": (mlp, torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8), ["0", "2", "4"]),
    "llama": (partial(llama, num_hidden_layers=1), torch.arange(12).reshape(2, 6), ["q_proj", "v_proj", "down_proj"]),
}
OPTIONS = {
    "plain": {"r": 3},
    "options": {"r": 2, "delora_lambda": 4, "module_dropout": 0.2, "bias": "delora_only"},
    "patterns": {"r": 2, "rank_pattern": {"2|v_proj": 3}, "lambda_pattern": {"0|q_proj": 7}},
}


class TestParity(ParityTests):
    method = "delora"
    cases = {
        f"{name}, {option}": ParityCase(build, x, {"target_modules": targets, **options}, model_scale=0.1)
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 16, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
    }
