"""HiRA here and in HF PEFT."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcore.testing import Libraries, ParityCase, ParityTests, check_same_distribution
from peftcore.testing.models import gpt2

IDS = torch.arange(20).reshape(4, 5) % 11


class Layers(nn.Module):
    """One layer of each kind that both libraries know."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.sound = nn.Conv1d(6, 8, 3, padding=1)
        self.image = nn.Conv2d(1, 4, 3, stride=2, bias=False)
        self.volume = nn.Conv3d(1, 2, (2, 1, 2))
        self.project = nn.Linear(18, 10)
        self.transposed = Conv1D(7, 10)

    def forward(self, ids):
        x = self.sound(self.words(ids).transpose(1, 2))
        x = self.image(x.tanh()[:, None])
        x = self.volume(x.tanh()[:, None]).flatten(1)
        return self.transposed(self.project(x.tanh()).tanh())


EVERY_KIND = {"r": 2, "target_modules": ["words", "sound", "image", "volume", "project", "transposed"]}
LARGE = {
    "linear": lambda: nn.Linear(300, 200),
    "transposed": lambda: Conv1D(200, 300),
    "conv2d": lambda: nn.Conv2d(40, 80, 3),
    "embedding": lambda: nn.Embedding(300, 100),
}


def large(layer, **options):
    return ParityCase(lambda: nn.Sequential(LARGE[layer]()), options={"r": 16, "target_modules": ["0"], **options})


class TestParity(ParityTests):
    method = "hira"
    cases = {
        "every kind": ParityCase(Layers, IDS, EVERY_KIND),
        "dropout": ParityCase(Layers, IDS, {**EVERY_KIND, "hira_dropout": 0.5}),
        "gpt2": ParityCase(
            gpt2, IDS, {"r": 3, "target_modules": ["c_attn", "c_fc", "wpe"], "fan_in_fan_out": True}, model_scale=0.2
        ),
    }
    starts = {
        f"{layer}, {init}": large(layer, init_weights=init)
        for layer in LARGE
        for init in (True, False, "gaussian", None)
        if (layer, init) != ("conv2d", "gaussian")
    }


def test_hf_peft_starts_a_gaussian_convolution_as_any_other():
    ours, theirs = Libraries("hira", large("conv2d", init_weights="gaussian")).new_states()
    usual, _ = Libraries("hira", large("conv2d", init_weights=True)).new_states()
    check_same_distribution(usual, theirs)
    with pytest.raises(AssertionError, match="starts from another distribution"):
        check_same_distribution(ours, theirs)


def test_patterns_of_ranks_hold_here_and_are_ignored_there():
    libraries = Libraries("hira", large("linear", rank_pattern={"0": 5}))
    ranks = [
        next(p.shape[0] for name, p in model.named_parameters() if "hira_A" in name)
        for model in (libraries.ours(), libraries.theirs())
    ]
    assert ranks == [5, 16]
