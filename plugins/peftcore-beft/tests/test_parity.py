"""BEFT here and in HF PEFT."""

import pytest
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, mlp
from peftcore.testing.parity import save

X = torch.linspace(-2, 2, 96).sin().reshape(4, 3, 8)
IDS = torch.arange(12).reshape(2, 6)


class TestParity(ParityTests):
    method = "beft"
    perturbation = 1.0
    cases = {
        "linear": ParityCase(mlp, X, {"target_modules": ["0", "4"]}),
        "linear, random start": ParityCase(mlp, X, {"target_modules": ["0", "4"], "init_weights": False}),
        "bert, default targets": ParityCase(bert, IDS, model_scale=0.3),
        "bert, by expression": ParityCase(bert, IDS, {"target_modules": r".*(query|value|dense)"}, model_scale=0.3),
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(2, 3000)), options={"target_modules": ["0"], "init_weights": init}
        )
        for init in (True, False)
    }

    def test_a_layer_without_a_bias_gets_one_when_merged(self, tmp_path):
        """HF PEFT can't merge into it."""
        libraries = Libraries("beft", ParityCase(mlp, X, {"target_modules": ["2"], "init_weights": False}))
        ours, theirs, answer = libraries.ours(), libraries.theirs(), libraries.case.answer
        save(ours, tmp_path / "ours")
        save(theirs, tmp_path / "theirs")
        for here, there in (
            (ours, libraries.load_there(tmp_path / "ours")),
            (libraries.load_here(tmp_path / "theirs"), theirs),
        ):
            expected = answer(there)
            assert (expected - answer(libraries.case.frozen())).abs().max() > 0.01
            torch.testing.assert_close(answer(here), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(answer(here.merge_and_unload()), expected, rtol=0, atol=1e-5)
            with pytest.raises(ValueError, match="no bias"):
                there.merge_and_unload()
