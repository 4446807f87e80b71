"""GraLoRA here and in HF PEFT."""

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
    "plain": {"r": 4, "alpha": 3},
    "hybrid": {"r": 4, "hybrid_r": 3, "alpha": 5, "bias": "gralora_only"},
    "one block": {"r": 3, "gralora_k": 1, "alpha": 2, "gralora_dropout": 0.2},
}


class TestParity(ParityTests):
    method = "gralora"
    cases = {
        f"{name}, {option}": ParityCase(
            build,
            x,
            {"target_modules": targets, "fan_in_fan_out": name == "gpt2", **options},
            model_scale=0.1 if name == "gpt2" else 0.0,
        )
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
    }
    starts = {
        f"{init}, {k}": ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 20, "hybrid_r": 16, "gralora_k": k, "target_modules": ["0"], "init_weights": init},
        )
        for init in (True, False)
        for k in (2, 4)
    }
