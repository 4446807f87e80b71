"""Super-Tuning here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import llama, mlp

X = torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8)
OPTIONS = {
    "sparse": {"sparsity": 0.9},
    "all": {"sparsity": 0.0},
    "smallest": {"sparsity": 0.8, "select_top": False},
    "places unsaid": {"sparsity": 0.7, "save_precomputed_indices": False},
    "supra": {"sparsity": 0.8, "r": 3},
    "supra, alpha": {"sparsity": 0.8, "r": 2, "lora_alpha": 7.0, "save_precomputed_indices": False},
    "supra, dropout": {"sparsity": 0.8, "r": 2, "lora_dropout": 0.5, "modules_to_save": ["4"]},
}


class TestParity(ParityTests):
    method = "supertuning"
    cases = {
        **{
            name: ParityCase(mlp, X, {"target_modules": ["0", "2", *["4"] * ("modules_to_save" not in o)], **o})
            for name, o in OPTIONS.items()
        },
        "llama, its layers unsaid": ParityCase(
            llama, torch.arange(12).reshape(2, 6), {"sparsity": 0.8, "r": 2}, model_scale=0.1
        ),
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 20, "target_modules": ["0"], "sparsity": 0.9, "init_weights": init},
        )
        for init in (True, False)
    }

    def test_the_entries_are_hf_peft_s(self, libraries):
        here, there = libraries.new_states()
        assert here.keys() == there.keys()
        places = [name for name in there if name.endswith("indices")]
        assert bool(places) == libraries.case.options.get("save_precomputed_indices", True)
        assert all(torch.equal(here[name], there[name]) for name in places)
