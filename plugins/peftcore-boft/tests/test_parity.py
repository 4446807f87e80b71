"""BOFT here and in HF PEFT: one file, one output, one start."""

import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.testing import perturb
from peftcore_boft import BOFTConfig


class Layers(nn.Module):
    """One layer of each kind that both libraries know."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(4, 6, 3, padding=1)
        self.mix = nn.Conv2d(6, 8, 2, stride=2, bias=False)
        self.project = nn.Linear(8, 12)
        self.last = nn.Linear(12, 5, bias=False)

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


INPUTS = {layers: torch.linspace(-2, 2, 400).sin().view(4, 4, 5, 5), opt: torch.arange(20).view(4, 5) % 11}
ALL = {"target_modules": ["image", "mix", "project", "last"]}
CASES = {
    "default": (layers, ALL),
    "by number": (layers, {**ALL, "boft_block_size": 0, "boft_block_num": 2}),
    "dropout": (layers, {**ALL, "boft_block_size": 2, "boft_dropout": 0.3, "bias": "boft_only"}),
    "opt": (opt, {"target_modules": ["q_proj", "fc1", "fc2"], "boft_block_size": 4, "fan_in_fan_out": False}),
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
        return peft.get_peft_model(build(), peft.BOFTConfig(**options)).eval()


def stir(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)


def file_tensors(directory):
    return load_file(directory / "adapter_model.safetensors")


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


def test_ours_in_hf_peft(case, tmp_path):
    build, options = case
    ours = get_peft_model(build(), BOFTConfig(**options))
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
    first, second = file_tensors(tmp_path), file_tensors(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_same(answer(ours.merge_and_unload(), build), answer(loaded.merge_and_unload(), build))


def test_the_factors_that_hf_peft_leaves_out_do_nothing(tmp_path):
    """HF PEFT holds one factor however many are asked for; here they are added, and its file gives what it gave."""
    options = {**ALL, "boft_block_size": 2, "boft_n_butterfly_factor": 2}
    loaded = theirs(layers, options)
    stir(loaded)
    loaded.save_pretrained(tmp_path)
    assert {len(value) for key, value in file_tensors(tmp_path).items() if "_R" in key} == {1}
    ours = PeftModel.from_pretrained(layers(), tmp_path)
    assert all(len(p) == 2 for name, p in ours.named_parameters() if name.endswith("boft_R"))
    assert_same(answer(ours, layers), answer(loaded, layers))
    ours.save_pretrained(tmp_path / "again")
    assert_same(answer(PeftModel.from_pretrained(layers(), tmp_path / "again"), layers), answer(loaded, layers))


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear(256, 900), nn.Conv2d(64, 900, 2)], ids=["linear", "conv2d"])
def test_the_start_has_hf_peft_s_distribution(layer, init):
    options = {"target_modules": ["0"], "init_weights": init}
    here = get_peft_model(nn.Sequential(layer), BOFTConfig(**options))
    mine = [p for p in here.parameters() if p.requires_grad]
    here.unload()
    other = [p for p in theirs(lambda: nn.Sequential(layer), options).parameters() if p.requires_grad]
    assert [p.shape for p in mine] == [p.shape for p in other]
    for own, there in zip(mine, other, strict=True):
        assert own.std().item() == pytest.approx(there.std().item(), rel=0.1)
        assert own.mean().item() == pytest.approx(there.mean().item(), abs=0.02)
