"""BOFT here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, convolutions, mlp
from peftcore.testing.parity import save

X = torch.arange(24.0).square().sin().reshape(3, 8)
IMAGES = torch.arange(784.0).square().sin().reshape(4, 4, 7, 7)
IDS = torch.arange(20).reshape(4, 5)
OPTIONS = {
    "default": {"target_modules": ["0", "2"]},
    "by number": {"target_modules": ["0", "2", "4"], "boft_block_size": 0, "boft_block_num": 2},
    "dropout": {"target_modules": ["0", "2", "4"], "boft_block_size": 2, "boft_dropout": 0.3, "bias": "boft_only"},
}
LARGE = {"linear": nn.Linear(256, 900), "conv2d": nn.Conv2d(64, 900, 2)}


def images():
    # HF PEFT takes neither groups nor a padding's name.
    return convolutions(2, groups=1, padding=1)


class TestParity(ParityTests):
    method = "boft"
    cases = {
        **{f"linear, {name}": ParityCase(mlp, X, options) for name, options in OPTIONS.items()},
        **{f"conv2d, {name}": ParityCase(images, IMAGES, options) for name, options in OPTIONS.items()},
        "bert": ParityCase(
            bert,
            IDS,
            {"target_modules": ["query", "dense"], "boft_block_size": 4, "fan_in_fan_out": False},
            model_scale=0.2,
        ),
    }
    starts = {
        f"{kind}, init_weights={init}": ParityCase(
            lambda layer=layer: nn.Sequential(layer), options={"target_modules": ["0"], "init_weights": init}
        )
        for kind, layer in LARGE.items()
        for init in (True, False)
    }

    def test_the_factors_that_hf_peft_leaves_out_do_nothing(self, tmp_path):
        """HF PEFT holds one factor however many are asked for; here they are added, and its file gives what it gave."""
        options = {"target_modules": ["0", "2"], "boft_block_size": 2, "boft_n_butterfly_factor": 2}
        libraries = Libraries("boft", ParityCase(mlp, X, options))
        theirs = libraries.theirs()
        assert {len(value) for name, value in save(theirs, tmp_path).items() if "_R" in name} == {1}
        ours = libraries.load_here(tmp_path)
        assert {len(value) for name, value in save(ours, tmp_path / "again").items() if "_R" in name} == {2}
        self.check_same(libraries, theirs, ours)
        self.check_same(libraries, libraries.load_here(tmp_path), libraries.load_here(tmp_path / "again"))
