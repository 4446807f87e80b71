"""C3A here and in HF PEFT."""

import peft
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import llama

X = torch.linspace(-2, 2, 160).sin().reshape(4, 5, 8)
IDS = torch.arange(12).reshape(2, 6)


def mlp():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 4))


OPTIONS = {
    "default": {"block_size": 2},
    "zero": {"init_weights": True, "block_size": 4},
    "patterns": {"block_size": 2, "block_size_pattern": {"2": 1, "v_proj": 1, "0": 4, "q_proj": 4}},
    "biases": {"block_size": 2, "bias": "c3a_only"},
}
INITS = (True, False, "gaussian", "kaiming_uniform", "xavier_uniform")


def case(options):
    return ParityCase(mlp, X, {"target_modules": ["0", "2", "4"], **options})


class TestParity(ParityTests):
    method = "c3a"
    perturbation = 2.0
    cases = {
        **{f"mlp, {name}": case(options) for name, options in OPTIONS.items()},
        **{
            f"llama, {name}": ParityCase(llama, IDS, {"target_modules": ["q_proj", "v_proj", "down_proj"], **options})
            for name, options in OPTIONS.items()
        },
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            torch.ones(300),
            {"block_size": 20, "target_modules": ["0"], "init_weights": init},
        )
        for init in INITS
    }


def test_two_active_adapters_add_up_as_hf_peft_merges_them_and_not_as_it_runs_them(tmp_path):
    """There the second adapter is given an input that the first has changed; merged, both act on the layer's own."""
    libraries = Libraries("c3a", case(OPTIONS["default"]), scale=2.0)
    theirs, answer = libraries.theirs(), libraries.case.answer
    theirs.add_adapter("other", peft.C3AConfig(block_size=4, target_modules=["0", "2"], init_weights="gaussian"))
    theirs.base_model.set_adapter(["default", "other"])
    theirs.save_pretrained(tmp_path)
    ours = libraries.load_here(tmp_path)
    ours.load_adapter(tmp_path / "other", "other")
    ours.set_adapter(["default", "other"])
    together, wrong = answer(ours), answer(theirs)
    theirs.merge_adapter()
    torch.testing.assert_close(together, answer(theirs), rtol=0, atol=1e-5)
    assert (together - wrong).abs().max() > 0.01
