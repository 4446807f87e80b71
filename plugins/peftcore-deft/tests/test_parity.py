"""DEFT and PaRa here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama, mlp

X = torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8)
OPTIONS = {
    "relu": {"r": 3},
    "relu, alpha": {"r": 3, "alpha": 7},
    "qr": {"r": 4, "decomposition_method": "qr"},
    "qr, alpha": {"r": 3, "alpha": 7, "decomposition_method": "qr"},
    "more than outputs": {"r": 6},
    "more than outputs, qr": {"r": 6, "decomposition_method": "qr"},
    "para": {"r": 3, "para": True},
    "para, qr": {"r": 3, "para": True, "decomposition_method": "qr"},
    "biases": {"r": 3, "bias": "deft_only", "target_modules": ["0", "2"], "modules_to_save": ["4"]},
    "dropout": {"r": 3, "deft_dropout": 0.5, "init_weights": False, "init_scale": 3.0},
}
STARTS = {
    "relu": {},
    "alpha": {"alpha": 7},
    "qr": {"decomposition_method": "qr"},
    "scaled": {"init_scale": 3.0},
    "random": {"init_weights": False},
    "random, scaled": {"init_weights": False, "init_scale": 3.0},
    "para": {"para": True, "init_scale": 3.0},
}


class TestParity(ParityTests):
    method = "deft"
    cases = {
        **{name: ParityCase(mlp, X, {"target_modules": ["0", "2", "4"], **o}) for name, o in OPTIONS.items()},
        "llama, its layers unsaid": ParityCase(llama, torch.arange(12).reshape(2, 6), {"r": 3}, model_scale=0.1),
    }
    starts = {
        name: ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)), options={"r": 20, "target_modules": ["0"], **options}
        )
        for name, options in STARTS.items()
    }
