"""HiRA here and in HF PEFT: one file, one output, one start."""

import warnings

import peft
import pytest
import torch
import transformers
from peft.tuners.hira import HiraModel
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import peftcore_hira
from peftcore import PeftModel, get_peft_model
from peftcore.testing import perturb
from peftcore_hira import HiraConfig


class Layers(nn.Module):
    """One layer of each kind that both libraries know."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.sound = nn.Conv1d(6, 8, 3, padding=1)
        self.image = nn.Conv2d(1, 4, 3, stride=2, bias=False)
        self.volume = nn.Conv3d(1, 2, (2, 1, 2))
        self.project = nn.Linear(18, 10)
        self.transposed = Conv1D(7, 10)

    def forward(self, ids):
        x = self.sound(self.words(ids).transpose(1, 2))
        x = self.image(x.tanh()[:, None])
        x = self.volume(x.tanh()[:, None]).flatten(1)
        return self.transposed(self.project(x.tanh()).tanh())


def layers():
    torch.manual_seed(0)
    return Layers().eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, use_cache=False)
    return transformers.GPT2LMHeadModel(config).eval()


IDS = torch.arange(20).reshape(4, 5) % 11
TARGETS = ["words", "sound", "image", "volume", "project", "transposed"]
CASES = {
    "every kind": (layers, {"r": 2, "target_modules": TARGETS}),
    "dropout": (layers, {"r": 2, "target_modules": TARGETS, "hira_dropout": 0.5}),
    "gpt2": (gpt2, {"r": 3, "target_modules": ["c_attn", "c_fc", "wpe"], "fan_in_fan_out": True}),
}


def answer(model):
    with torch.no_grad():
        output = model(IDS)
    return output if isinstance(output, torch.Tensor) else output.logits


def theirs(build, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(build(), peft.HiraConfig(**options)).eval()


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_ours_in_hf_peft(case, tmp_path):
    build, options = case
    ours = get_peft_model(build(), HiraConfig(**options))
    perturb(ours)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert_same(answer(ours), answer(loaded))
    assert_same(answer(ours.merge_and_unload()), answer(loaded.merge_and_unload()))


def test_hf_peft_s_here(case, tmp_path):
    build, options = case
    loaded = theirs(build, options)
    perturb_theirs(loaded)
    loaded.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(build(), tmp_path)
    assert_same(answer(ours), answer(loaded))
    assert not torch.allclose(answer(ours), answer(build()), atol=1e-2)
    ours.save_pretrained(tmp_path / "again")
    # HF PEFT writes the weight of an adapted embedding along.
    written = {name: value for name, value in tensors(tmp_path).items() if "hira_" in name}
    again = tensors(tmp_path / "again")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], value) for name, value in written.items())
    assert_same(answer(ours.merge_and_unload()), answer(loaded.merge_and_unload()))


def tensors(directory):
    return load_file(directory / "adapter_model.safetensors")


def perturb_theirs(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)


BIG = {
    "linear": lambda: nn.Linear(300, 200),
    "transposed": lambda: Conv1D(200, 300),
    "conv2d": lambda: nn.Conv2d(40, 80, 3),
    "embedding": lambda: nn.Embedding(300, 100),
}


@pytest.mark.parametrize("init", [True, False, "gaussian", None])
@pytest.mark.parametrize("kind", BIG)
def test_the_start_has_hf_peft_s_distribution(kind, init):
    options = {"r": 16, "target_modules": ["0"], "init_weights": init}
    here = dict(get_peft_model(nn.Sequential(BIG[kind]()), HiraConfig(**options)).named_parameters())
    there = dict(theirs(lambda: nn.Sequential(BIG[kind]()), options).named_parameters())
    for factor in "AB":
        (a,), (b,) = ([p for name, p in model.items() if f"_{factor}." in f"{name}."] for model in (here, there))
        assert a.shape == b.shape
        if (kind, init) != ("conv2d", "gaussian"):  # which HF PEFT starts as if it were True
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.1)
            assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.35)


def test_patterns_of_ranks_hold_here_and_are_ignored_there():
    options = {"r": 2, "target_modules": ["0"], "rank_pattern": {"0": 5}}
    there = dict(theirs(lambda: nn.Sequential(nn.Linear(8, 6)), options).named_parameters())
    assert [p.shape[0] for name, p in there.items() if "hira_A" in name] == [2]
    here = dict(get_peft_model(nn.Sequential(nn.Linear(8, 6)), HiraConfig(**options)).named_parameters())
    assert [p.shape[0] for name, p in here.items() if "hira_A" in name] == [5]


def test_default_targets_are_hf_peft_s():
    theirs = HiraModel.target_module_mapping
    assert theirs
    for model_type, names in theirs.items():
        if not isinstance(names, str):  # one is a regular expression, and stands in the core's table as wildcards
            assert sorted(peftcore_hira.default_target_modules("hira", model_type)) == sorted(names), model_type
    assert peftcore_hira.default_target_modules("c3a", "llama") is None
