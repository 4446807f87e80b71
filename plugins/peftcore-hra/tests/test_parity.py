"""HRA here and in HF PEFT."""

import pytest
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, convolutions, mlp

pytestmark = pytest.mark.filterwarnings("ignore:HRA starts away")

X = torch.arange(24.0).square().sin().reshape(3, 8)
IMAGES = torch.arange(784.0).square().sin().reshape(4, 4, 7, 7)
IDS = torch.arange(20).reshape(4, 5)
ALL = {"target_modules": ["0", "2", "4"]}
OPTIONS = {
    "even": {**ALL, "r": 4},
    "odd": {**ALL, "r": 3},
    "more than there are dimensions": {**ALL, "r": 20},
    "orthogonal": {**ALL, "r": 3, "apply_GS": True, "init_weights": False},
    "biases": {**ALL, "r": 2, "bias": "all"},
}
LARGE = {"linear": nn.Linear(400, 8), "conv2d": nn.Conv2d(100, 8, 2)}
STARTS = [{"r": 8}, {"r": 7}, {"r": 8, "init_weights": False}]


def images():
    # HF PEFT takes neither groups nor a padding's name.
    return convolutions(2, groups=1, padding=1)


class TestParity(ParityTests):
    method = "hra"
    cases = {
        **{f"linear, {name}": ParityCase(mlp, X, options) for name, options in OPTIONS.items()},
        **{f"conv2d, {name}": ParityCase(images, IMAGES, OPTIONS[name]) for name in ("even", "odd", "orthogonal")},
        "as many as there are dimensions": ParityCase(mlp, X, {"target_modules": ["0"], "r": 8, "apply_GS": True}),
        "bert": ParityCase(bert, IDS, {"target_modules": ["query", "dense"], "r": 6}, model_scale=0.2),
    }
    starts = {
        f"{kind}, {options}": ParityCase(
            lambda layer=layer: nn.Sequential(layer), options={"target_modules": ["0"], **options}
        )
        for kind, layer in LARGE.items()
        for options in STARTS
    }

    def test_both_start_with_pairs_that_undo_each_other(self, start):
        options = start.case.options
        for state in start.new_states():
            (u,) = state.values()
            assert torch.equal(u[:, 0:-1:2], u[:, 1::2]) == (options["r"] % 2 == 0 and "init_weights" not in options)


def test_orthogonal_reflections_start_in_different_directions():
    """HF PEFT starts them with pairs of equal vectors, of which Gram-Schmidt leaves rounding errors alone."""
    case = ParityCase(mlp, options={"target_modules": ["0"], "r": 4, "apply_GS": True})
    here, there = Libraries("hra", case).new_states()
    assert [torch.linalg.matrix_rank(u) for state in (here, there) for u in state.values()] == [4, 2]
