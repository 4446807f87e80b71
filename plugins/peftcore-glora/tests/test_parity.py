"""GLoRA here and in HF PEFT."""

import itertools

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama, mlp

X = torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8)
FORMS = itertools.product(("lora", "vector", "constant", "none"), ("lora", "vector", "none"), ("vector", "constant"))


class TestParity(ParityTests):
    method = "glora"
    cases = {
        **{
            f"{ab}, {c}, {de}": ParityCase(
                mlp,
                X,
                {"r": 3, "target_modules": ["0", "2", "4"], "config_A_B": ab, "config_C": c, "config_D_E": de},
            )
            for ab, c, de in FORMS
        },
        "a trained bias": ParityCase(
            mlp, X, {"target_modules": ["0", "4"], "config_D_E": "none", "bias": "glora_only", "modules_to_save": ["2"]}
        ),
        "llama, its layers unsaid": ParityCase(
            llama, torch.arange(12).reshape(2, 6), {"r": 2, "config_D_E": "none"}, model_scale=0.1
        ),
    }
    starts = {
        f"{form}, {init}": ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={
                "r": 20,
                "target_modules": ["0"],
                "config_A_B": form,
                "config_C": form,
                "config_D_E": "vector",
                "init_weights": init,
            },
        )
        for form in ("lora", "vector")
        for init in (True, False)
    }
