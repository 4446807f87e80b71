"""Uni-LoRA here and in HF PEFT, with and without the assignment in files."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import gpt2, mlp

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
OPTIONS = {
    "from the seed": {"r": 3, "theta_d_length": 20},
    "other seed": {"theta_d_length": 9, "proj_seed": 7},
    "longer than the factors": {"r": 2, "theta_d_length": 1000},
    "without a remainder": {"r": 4, "theta_d_length": 14},
    "saved": {"r": 2, "theta_d_length": 11, "save_indices": True},
    "saved, from another seed": {"r": 2, "theta_d_length": 11, "save_indices": True, "proj_seed": 1},
    "one layer": {"r": 2, "theta_d_length": 11, "target_modules": ["2"], "modules_to_save": ["4"]},
    "dropout": {"theta_d_length": 30, "unilora_dropout": 0.5},
}
GPT2 = {"theta_d_length": 40}


class TestParity(ParityTests):
    method = "unilora"
    perturbation = 2.0
    cases = {
        **{name: ParityCase(mlp, X, {"target_modules": ["4", "0", "2"], **o}) for name, o in OPTIONS.items()},
        "gpt2": ParityCase(
            gpt2, IDS, {**GPT2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, model_scale=0.1
        ),
        "gpt2, its layers unsaid": ParityCase(gpt2, IDS, GPT2, model_scale=0.1),
    }
    starts = {
        name: ParityCase(
            lambda: nn.Sequential(nn.Linear(30, 20)),
            options={"theta_d_length": 20000, "target_modules": ["0"], **options},
        )
        for name, options in {"bound": {"init_theta_d_bound": 0.7}, "normal": {"init_weights": False}}.items()
    }
