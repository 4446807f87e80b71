"""RoAd here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import bert, mlp

X = torch.linspace(-2, 2, 96).sin().reshape(4, 3, 8)
IDS = torch.arange(12).reshape(2, 6)
BERT = {"target_modules": r".*(query|dense)", "group_size": 8, "variant": "road_2"}


def linear(layers, **options):
    return ParityCase(mlp, X, {"target_modules": layers, **options})


class TestParity(ParityTests):
    method = "road"
    perturbation = 1.0
    cases = {
        **{
            f"{variant}, groups of {size}": linear(layers, variant=variant, group_size=size)
            for variant in ("road_1", "road_2", "road_4")
            for size, layers in ((4, ["0", "4"]), (2, ["0", "2", "4"]))
        },
        "random start": linear(["0", "4"], variant="road_4", group_size=4, init_weights=False),
        "bert, default targets": ParityCase(bert, IDS, {"group_size": 8}, model_scale=0.3),
        "bert": ParityCase(bert, IDS, BERT, model_scale=0.3),
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(2, 6400)), options={"target_modules": ["0"], "init_weights": init}
        )
        for init in (True, False)
    }
