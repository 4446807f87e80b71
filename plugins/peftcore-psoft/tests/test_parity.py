"""PSOFT here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama, mlp

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
OPTIONS = {
    "default": {},
    "alpha": {"psoft_alpha": 7},
    "pissa": {"ab_svd_init": "pissa_init", "psoft_alpha": 7},
    "lowrank": {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 2, "random_seed": 5},
    "no scaling": {"psoft_mag_a": False, "psoft_mag_b": False},
    "one scaling": {"psoft_mag_a": False},
    "free": {"psoft_orth": False, "psoft_mag_b": False},
    **{f"{n} terms": {"use_cayley_neumann": True, "num_cayley_neumann_terms": n} for n in (1, 2, 3, 4, 5, 8)},
    "bound": {"use_cayley_neumann": True, "cayley_neumann_eps": 0.3},
    "dropout": {"psoft_dropout": 0.5, "modules_to_save": ["4"], "target_modules": ["0", "2"]},
}


class TestParity(ParityTests):
    method = "psoft"
    cases = {
        **{name: ParityCase(mlp, X, {"r": 4, "target_modules": ["0", "2", "4"], **o}) for name, o in OPTIONS.items()},
        "llama, its layers unsaid": ParityCase(llama, IDS, {"r": 4}, model_scale=0.1),
    }
    starts = {
        name: ParityCase(
            lambda: nn.Sequential(nn.Linear(90, 100)),
            options={"r": 80, "target_modules": ["0"], "init_weights": False, **options},
        )
        for name, options in {"orthogonal": {}, "free": {"psoft_orth": False}}.items()
    }
