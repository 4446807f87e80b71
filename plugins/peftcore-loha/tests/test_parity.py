"""LoHa here and in HF PEFT."""

from functools import partial

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import convolutions, llama, mlp

MODELS = {
    "mlp": (mlp, torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8), ["0", "2", "4"]),
    "conv1d": (partial(convolutions, 1), torch.linspace(-9, 9, 112).sin().reshape(4, 4, 7), ["0", "2", "4"]),
    "conv2d": (partial(convolutions, 2), torch.linspace(-9, 9, 784).sin().reshape(4, 4, 7, 7), ["0", "2", "4"]),
    "llama": (partial(llama, num_hidden_layers=1), torch.arange(12).reshape(2, 6), ["q_proj", "v_proj", "down_proj"]),
}
OPTIONS = {
    "plain": {},
    "tucker": {"use_effective_conv2d": True, "alpha": 5},
    "patterns": {"rank_pattern": {"2|v_proj": 3}, "alpha_pattern": {"0|q_proj": 7}},
}
LARGE = {
    "linear": lambda: nn.Linear(300, 200),
    "conv1d": lambda: nn.Conv1d(90, 80, 3),
    "conv2d": lambda: nn.Conv2d(90, 80, 3),
}


class TestParity(ParityTests):
    method = "loha"
    cases = {
        f"{name}, {option}": ParityCase(build, x, {"r": 2, "alpha": 3, "target_modules": targets, **options})
        for name, (build, x, targets) in MODELS.items()
        for option, options in OPTIONS.items()
        if (name, option) != ("llama", "tucker")
    }
    starts = {
        f"{name}, {init}, {tucker}": ParityCase(
            lambda layer=layer: nn.Sequential(layer()),
            options={"r": 16, "target_modules": ["0"], "init_weights": init, "use_effective_conv2d": tucker},
        )
        for name, layer in LARGE.items()
        for init in (True, False)
        for tucker in (False, True)
    }
