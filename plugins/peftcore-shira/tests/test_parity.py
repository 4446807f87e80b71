"""SHiRA here and in HF PEFT."""

import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import llama, mlp
from peftcore.testing.parity import save

X = torch.linspace(-2, 2, 32).reshape(4, 8)
IDS = torch.arange(20).reshape(4, 5)


def last_entries(base_layer, r, **kwargs):
    """Choose as many entries as LoRA of rank r has numbers, from the end."""
    mask = torch.zeros_like(base_layer.weight)
    mask.view(-1)[-r * sum(mask.shape) :] = 1
    return mask


class Masked(Libraries):
    """Both are told which entries to choose, which no option says."""

    def _adapted(self, library, config, perturbed):
        config.mask_fn = last_entries
        return super()._adapted(library, config, perturbed)


def check_same_entries(libraries):
    here, there = libraries.new_states()
    indices = [name for name in there if name.endswith("shira_indices")]
    assert indices and here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in indices)


class TestParity(ParityTests):
    method = "shira"
    cases = {
        "linear": ParityCase(mlp, X, {"r": 2, "target_modules": ["0", "2"]}),
        "seeded": ParityCase(mlp, X, {"r": 1, "target_modules": ["0", "2", "4"], "random_seed": 7}),
        "llama": ParityCase(
            llama, IDS, {"r": 2, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
        ),
    }
    starts = {
        str(init): ParityCase(
            lambda: nn.Sequential(nn.Linear(300, 200)),
            options={"r": 16, "target_modules": ["0"], "init_weights": init, "random_seed": 1},
        )
        for init in (True, False)
    }

    def test_the_entries_are_hf_peft_s(self, libraries):
        check_same_entries(libraries)

    def test_a_mask_of_one_s_own_travels_in_the_file(self, tmp_path):
        libraries = Masked("shira", ParityCase(mlp, X, {"r": 2, "target_modules": ["0", "2"], "random_seed": 1}))
        check_same_entries(libraries)
        ours, theirs = libraries.ours(), libraries.theirs()
        save(ours, tmp_path / "ours")
        save(theirs, tmp_path / "theirs")
        self.check_same(libraries, ours, libraries.load_there(tmp_path / "ours"))
        self.check_same(libraries, theirs, libraries.load_here(tmp_path / "theirs"))
