"""OFT here and in HF PEFT."""

import peft
import torch
from torch import nn

import peftcore
from peftcore.testing import Libraries, ParityCase, ParityTests, perturb
from peftcore.testing.models import bert
from peftcore.testing.parity import save
from peftcore_oft import OFTConfig

IDS = torch.arange(20).reshape(4, 5) % 11
ALL = {"target_modules": ["words", "mix", "project", "last"]}
OPTIONS = {
    **{f"{n} terms": {"oft_block_size": 4, "num_cayley_neumann_terms": n} for n in range(2, 8)},
    "exact": {"oft_block_size": 4, "use_cayley_neumann": False},
    "by number": {"r": 2, "oft_block_size": 0, "use_cayley_neumann": False},
    "shared": {"oft_block_size": 2, "block_share": True},
    "constrained": {"oft_block_size": 4, "coft": True, "eps": 0.3},
    "constrained, shared": {"oft_block_size": 4, "coft": True, "eps": 0.3, "block_share": True},
    "dropout": {"oft_block_size": 4, "module_dropout": 0.5, "bias": "oft_only"},
}
LARGE = {"linear": nn.Linear(256, 8), "embedding": nn.Embedding(8, 256), "conv2d": nn.Conv2d(64, 8, 2)}


class Layers(nn.Module):
    """One layer of each kind that both libraries know; the kernel of size 1 is the one that both compute alike."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.mix = nn.Conv2d(8, 12, 1, stride=2)
        self.project = nn.Linear(12, 8)
        self.last = nn.Linear(8, 6, bias=False)

    def forward(self, ids):
        x = self.mix(self.words(ids).permute(0, 2, 1)[..., None].expand(-1, -1, -1, 3))
        return self.last(self.project(x.tanh().mean((2, 3))).tanh())


def layers(**options):
    return ParityCase(Layers, IDS, {**ALL, **options})


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


class TestParity(ParityTests):
    method = "oft"
    perturbation = 0.25
    cases = {
        **{name: layers(**options) for name, options in OPTIONS.items()},
        "bert": ParityCase(bert, IDS, {"target_modules": ["query", "dense"], "oft_block_size": 4}, model_scale=0.2),
    }
    starts = {
        f"{kind}, init_weights={init}": ParityCase(
            lambda layer=layer: nn.Sequential(layer), options={"target_modules": ["0"], "init_weights": init}
        )
        for kind, layer in LARGE.items()
        for init in (True, False)
    }

    def test_a_size_that_hf_peft_adjusted_is_found_again(self, tmp_path):
        """HF PEFT takes the nearest size that divides, and writes down the one asked for."""
        libraries = Libraries("oft", layers(oft_block_size=5), scale=0.25)
        theirs = libraries.theirs()
        save(theirs, tmp_path)
        self.check_same(libraries, theirs, libraries.load_here(tmp_path))


def test_one_term_is_the_identity_in_both():
    libraries = Libraries("oft", layers(oft_block_size=4, num_cayley_neumann_terms=1))
    answer = libraries.case.answer
    for model in (libraries.ours(), libraries.theirs()):
        assert_same(answer(model), answer(libraries.case.frozen()))


def test_a_kernel_starts_as_the_identity_and_merges_as_hf_peft_s(tmp_path):
    """HF PEFT's forward pass of a kernel above 1 is no identity at the start; its merged weight is the paper's."""
    x = torch.linspace(-2, 2, 200).sin().reshape(2, 4, 5, 5)
    options = {"target_modules": ["0"], "oft_block_size": 4}
    case = ParityCase(lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), x, options)
    libraries, answer = Libraries("oft", case, scale=0.25), case.answer
    frozen = answer(case.frozen())
    assert not torch.allclose(answer(libraries.theirs(perturbed=False)), frozen, atol=1e-2)
    assert_same(answer(libraries.ours(perturbed=False)), frozen)
    ours, theirs = libraries.ours(), libraries.theirs()
    for model, name in ((ours, "ours"), (theirs, "theirs")):
        save(model, tmp_path / name)
    assert_same(answer(libraries.load_there(tmp_path / "ours").merge_and_unload()), answer(ours))
    assert_same(answer(libraries.load_here(tmp_path / "theirs")), answer(theirs.merge_and_unload()))


def test_two_rotations_act_in_the_order_of_the_list():
    """HF PEFT's forward pass and its merged weight apply them in opposite orders; the merged one is the list's."""
    options = {"target_modules": ["project"], "oft_block_size": 4}
    libraries = Libraries("oft", ParityCase(Layers, IDS, options))
    ours, theirs, answer = libraries.ours(), libraries.theirs(), libraries.case.answer
    ours.add_adapter("other", OFTConfig(**options))
    perturb(ours, "other", seed=1)
    theirs.add_adapter("other", peft.OFTConfig(**options))
    for name in ("default", "other"):
        peft.set_peft_model_state_dict(theirs, peftcore.get_peft_model_state_dict(ours, adapter_name=name), name)
    ours.set_adapter(["default", "other"])
    theirs.base_model.set_adapter(["default", "other"])
    forward = answer(theirs)
    theirs.merge_adapter()
    assert not torch.allclose(forward, answer(theirs), atol=1e-4)
    assert_same(answer(ours), answer(theirs))
