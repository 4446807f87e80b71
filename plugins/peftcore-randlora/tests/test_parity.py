"""RandLoRA here and in HF PEFT, and the same bases from one seed."""

import pytest
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import gpt2, mlp
from peftcore.testing.parity import save

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
BASES = ("randlora_A", "randlora_B")
OPTIONS = {
    "sizes": {"r": 3, "target_modules": ["0", "2", "4"]},
    "other seed": {"r": 20, "target_modules": ["0", "4"], "projection_prng_key": 5},
    "bases from the seed": {"r": 4, "target_modules": ["0", "2"], "save_projection": False},
    "sparse": {"r": 4, "target_modules": ["0", "2"], "save_projection": False, "sparse": True},
    "very sparse": {"r": 4, "target_modules": ["0", "2"], "save_projection": False, "very_sparse": True},
    "both words": {"r": 4, "target_modules": ["0"], "sparse": True, "very_sparse": True},
    "dropout": {"r": 3, "target_modules": ["0", "2"], "modules_to_save": ["4"], "randlora_dropout": 0.5},
}


@pytest.mark.filterwarnings("ignore:Specified to not save")
class TestParity(ParityTests):
    method = "randlora"
    repeated = BASES
    perturbation = 0.01  # more makes so large a change that activations saturate
    cases = {
        **{name: ParityCase(mlp, X, options) for name, options in OPTIONS.items()},
        "gpt2": ParityCase(gpt2, IDS, {"r": 5}, model_scale=0.1),
    }
    starts = {
        "no identity": ParityCase(
            lambda: nn.Sequential(nn.Linear(1500, 1600)),
            options={"r": 500, "target_modules": ["0"], "init_weights": False, "save_projection": False},
        )
    }

    def test_both_start_with_the_same_numbers(self, libraries):
        """Nothing in a new adapter is drawn from anything but the seed; HF PEFT has the bases once more per layer."""
        here, there = libraries.new_states()
        copies = {name for name in there if name.startswith("base_model.model.") and name.endswith(BASES)}
        assert bool(copies) == libraries.case.options.get("save_projection", True)
        assert here.keys() == there.keys() - copies
        assert [name for name in here if not torch.equal(here[name], there[name])] == []

    def test_hf_peft_takes_bases_that_no_seed_gives(self, tmp_path):
        """What stands once in the file reaches every layer."""
        libraries = Libraries("randlora", self.cases["sizes"], repeated=BASES)
        ours = libraries.ours()
        with torch.no_grad():
            for buffer in ours.buffers():
                buffer.add_(0.5)
        save(ours, tmp_path)
        self.check_same(libraries, ours, libraries.load_there(tmp_path))
