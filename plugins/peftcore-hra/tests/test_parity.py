"""HRA here and in HF PEFT: one file, one output, one start."""

import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.testing import perturb
from peftcore_hra import HRAConfig

pytestmark = pytest.mark.filterwarnings("ignore:HRA starts away")


class Layers(nn.Module):
    """One layer of each kind that both libraries know."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(2, 6, 3, padding=1)
        self.mix = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.project = nn.Linear(8, 5)
        self.last = nn.Linear(5, 7, bias=False)

    def forward(self, x):
        x = self.mix(self.image(x).tanh()).tanh().mean((2, 3))
        return self.last(self.project(x).tanh())


def layers():
    torch.manual_seed(0)
    return Layers().eval()


def opt():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "ffn_dim": 12, "num_hidden_layers": 2}
    config = transformers.OPTConfig(
        vocab_size=11, num_attention_heads=2, max_position_embeddings=8, pad_token_id=0, **sizes
    )
    return transformers.OPTForCausalLM(config).eval()


INPUTS = {layers: torch.linspace(-2, 2, 200).sin().view(4, 2, 5, 5), opt: torch.arange(20).view(4, 5) % 11}
ALL = {"target_modules": ["image", "mix", "project", "last"]}
CASES = {
    "even": (layers, {**ALL, "r": 4}),
    "odd": (layers, {**ALL, "r": 3}),
    "more than there are dimensions": (layers, {**ALL, "r": 20}),
    "orthogonal": (layers, {**ALL, "r": 3, "apply_GS": True, "init_weights": False}),
    "as many as there are dimensions": (layers, {"target_modules": ["last"], "r": 5, "apply_GS": True}),
    "biases": (layers, {**ALL, "r": 2, "bias": "all"}),
    "opt": (opt, {"target_modules": ["q_proj", "fc1", "fc2"], "r": 6}),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def answer(model, build):
    with torch.no_grad():
        output = model(INPUTS[build])
    return output if isinstance(output, torch.Tensor) else output.logits


def theirs(build, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(build(), peft.HRAConfig(**options)).eval()


def stir(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


def test_ours_in_hf_peft(case, tmp_path):
    build, options = case
    ours = get_peft_model(build(), HRAConfig(**options))
    perturb(ours)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert_same(answer(ours, build), answer(loaded, build))
    assert_same(answer(ours.merge_and_unload(), build), answer(loaded.merge_and_unload(), build))


def test_hf_peft_s_here(case, tmp_path):
    build, options = case
    loaded = theirs(build, options)
    stir(loaded)
    loaded.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(build(), tmp_path)
    assert_same(answer(ours, build), answer(loaded, build))
    assert not torch.allclose(answer(ours, build), answer(build(), build), atol=1e-2)
    ours.save_pretrained(tmp_path / "again")
    first, second = (load_file(path / "adapter_model.safetensors") for path in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_same(answer(ours.merge_and_unload(), build), answer(loaded.merge_and_unload(), build))


BIG = {"linear": lambda: nn.Linear(400, 8), "conv2d": lambda: nn.Conv2d(100, 8, 2)}


@pytest.mark.parametrize("options", [{"r": 8}, {"r": 7}, {"r": 8, "init_weights": False}], ids=str)
@pytest.mark.parametrize("kind", BIG)
def test_the_start_has_hf_peft_s_distribution(kind, options):
    options = {**options, "target_modules": ["0"]}
    ours = get_peft_model(nn.Sequential(BIG[kind]()), HRAConfig(**options))
    (here,) = [p for p in ours.parameters() if p.requires_grad]
    (there,) = [p for p in theirs(lambda: nn.Sequential(BIG[kind]()), options).parameters() if p.requires_grad]
    assert here.shape == there.shape
    assert here.std().item() == pytest.approx(there.std().item(), rel=0.1)
    assert here.abs().max().item() == pytest.approx(there.abs().max().item(), rel=0.02)
    for u in (here, there):
        pairs = torch.equal(u[:, 0:-1:2], u[:, 1::2])
        assert pairs == (options["r"] % 2 == 0 and "init_weights" not in options)


def test_orthogonal_reflections_start_in_different_directions():
    """HF PEFT starts them with pairs of equal vectors, of which Gram-Schmidt leaves rounding errors alone."""
    options = {"target_modules": ["0"], "r": 4, "apply_GS": True}
    there = theirs(lambda: nn.Sequential(nn.Linear(8, 8)), options).base_model.model[0].hra_u["default"]
    assert torch.linalg.matrix_rank(there) == 2
    here = get_peft_model(nn.Sequential(nn.Linear(8, 8)), HRAConfig(**options)).base_model.model[0].adapters["default"]
    assert torch.linalg.matrix_rank(here.hra_u) == 4
