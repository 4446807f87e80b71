"""FRoD here and in HF PEFT.

HF PEFT does not find U by the basis that a file brings, but by the one that it found when the adapter was made. So what
is written here acts the same there only with HF PEFT's own basis, as after its file was loaded here.
"""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from peftcore.testing import Libraries, ParityCase, ParityTests, perturb
from peftcore.testing.models import gpt2, llama
from peftcore.testing.parity import save

X = torch.arange(24.0).square().sin().reshape(3, 8)
IDS = torch.arange(20).reshape(4, 5)
TARGETS = {"target_modules": ["q"], "progressbar": False}
OPTIONS = {
    "default": {},
    "denser": {"sparse_rate": 0.3, "projection_prng_key": 7},
    "every entry": {"sparse_rate": 1.0},
    "random start": {"init_weights": False, "regularization_alpha": 0.1},
    "dropout": {"frod_dropout": 0.5, "modules_to_save": ["head"]},
}


def block(into, out):
    return nn.Sequential(OrderedDict(q=nn.Linear(into, out), act=nn.Tanh()))


def blocks():
    """HF PEFT scales rounding errors up where a weight takes directions to zero, so no layer has more inputs."""
    return nn.Sequential(OrderedDict({"0": block(8, 8), "1": block(8, 12), "head": nn.Linear(12, 4)}))


def stack(layers=3, into=12, out=16):
    return nn.Sequential(
        *[nn.ModuleDict({"q": nn.Linear(into, out), "v": nn.Linear(into, out)}) for _ in range(layers)]
    )


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:Specified to not save")
class TestParity(ParityTests):
    method = "frod"
    perturbation = 0.2
    cases = {
        **{name: ParityCase(blocks, X, {**TARGETS, **options}) for name, options in OPTIONS.items()},
        "llama": ParityCase(llama, IDS, {"sparse_rate": 0.1, "progressbar": False}, model_scale=0.1),
        "gpt2": ParityCase(
            gpt2,
            IDS,
            {"target_modules": ["c_attn"], "fan_in_fan_out": True, "progressbar": False},
            model_scale=0.1,
        ),
    }
    starts = {
        "random": ParityCase(
            lambda: stack(2, 50, 60),
            options={"target_modules": ["q"], "init_weights": False, "sparse_rate": 0.9, "progressbar": False},
        )
    }

    @pytest.mark.xfail(reason="HF PEFT takes V from the file, and U from the V that it found itself", strict=False)
    def test_what_is_written_here_acts_the_same_there(self, libraries, tmp_path):
        super().test_what_is_written_here_acts_the_same_there(libraries, tmp_path)

    def test_what_is_trained_here_with_their_basis_acts_the_same_there(self, libraries, tmp_path):
        save(libraries.theirs(perturbed=False), tmp_path / "theirs")
        ours = libraries.load_here(tmp_path / "theirs", is_trainable=True).eval()
        perturb(ours, scale=self.perturbation)
        save(ours, tmp_path / "ours")
        self.check_same(libraries, ours, libraries.load_there(tmp_path / "ours"))


@pytest.mark.parametrize("sizes", [(3, 12, 16), (4, 16, 16), (2, 16, 7)], ids=str)
@pytest.mark.parametrize("damping", [0.001, 0.5])
def test_both_find_the_same_bases_and_places(sizes, damping):
    """But for directions' signs, and for rounding, which decompositions amplify."""
    options = {"target_modules": ["q", "v"], "regularization_alpha": damping, "progressbar": False, "sparse_rate": 0.1}
    here, there = Libraries("frod", ParityCase(lambda: stack(*sizes), options=options)).new_states()
    assert here.keys() == there.keys()
    for name, theirs in there.items():
        if "frod_V" not in name:
            torch.testing.assert_close(here[name], theirs, rtol=1e-3, atol=1e-4)
            continue
        rank = min(sizes[1], sizes[0] * sizes[2])
        signs = (here[name] * theirs).sum(0).sign()[:rank]
        torch.testing.assert_close(here[name][:, :rank] * signs, theirs[:, :rank], rtol=1e-3, atol=1e-3)
