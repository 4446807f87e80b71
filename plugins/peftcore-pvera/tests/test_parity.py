"""PVeRA here and in HF PEFT, and what both draw from one seed."""

import pytest
import torch

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import gpt2, mlp

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)


@pytest.mark.filterwarnings("ignore:Specified to not save")
class TestParity(ParityTests):
    method = "pvera"
    cases = {
        "sizes": ParityCase(mlp, X, {"r": 3, "target_modules": ["0", "2", "4"]}),
        "other seed": ParityCase(
            mlp, X, {"r": 20, "target_modules": ["0", "4"], "projection_prng_key": 5, "d_initial": 0.4}
        ),
        "projections from the seed": ParityCase(
            mlp, X, {"r": 4, "target_modules": ["0", "2"], "save_projection": False}
        ),
        "dropout, and a module saved": ParityCase(
            mlp, X, {"r": 3, "target_modules": ["0", "2"], "modules_to_save": ["4"], "pvera_dropout": 0.5}
        ),
        "gpt2": ParityCase(
            gpt2,
            IDS,
            {"r": 5, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "layers_to_transform": [1]},
            model_scale=0.1,
        ),
        "gpt2, its layers unsaid": ParityCase(gpt2, IDS, {"r": 5}, model_scale=0.1),
    }
    starts = {"no identity": ParityCase(mlp, options={"r": 4000, "target_modules": ["0"], "init_weights": False})}

    def test_both_start_with_the_same_numbers(self, libraries):
        """Nothing in a new adapter is drawn from anything but the seed."""
        here, there = libraries.new_states()
        assert here.keys() == there.keys()
        for name, tensor in there.items():
            torch.testing.assert_close(here[name], tensor, rtol=1e-6, atol=0)

    def test_both_draw_the_same(self, libraries):
        """In training, from torch's generator; the dropout's numbers come first in both."""
        outputs = []
        for model in (libraries.ours(), libraries.theirs()):
            torch.manual_seed(7)
            outputs.append(libraries.case.answer(model.train()))
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5 * outputs[1].abs().max().item())


def test_both_draw_the_same_from_a_seed_in_inference():
    options = {"r": 3, "target_modules": ["0", "2"], "sample_at_inference": True, "generator_seed": 7}
    libraries = Libraries("pvera", ParityCase(mlp, X, options))
    ours, theirs = libraries.ours(), libraries.theirs()
    for _ in range(2):
        torch.testing.assert_close(libraries.case.answer(ours), libraries.case.answer(theirs), rtol=1e-5, atol=1e-5)
