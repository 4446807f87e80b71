"""VeRA here and in HF PEFT: one file, one output, one start, and the same projections from one seed."""

import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.testing import perturb
from peftcore_vera import VeraConfig

torch.set_num_threads(1)


class Layers(nn.Sequential):
    """Layers of different sizes, so that each uses another part of the projections."""

    def __init__(self):
        super().__init__(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4, bias=False), nn.Tanh(), Conv1D(9, 4))


def layers():
    torch.manual_seed(0)
    return Layers().eval(), torch.randn(3, 6)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, use_cache=False)
    return transformers.GPT2LMHeadModel(config).eval(), torch.arange(20).reshape(4, 5) % 11


CASES = {
    "layers": (layers, {"r": 3, "target_modules": ["0", "2", "4"]}),
    "other seed": (layers, {"r": 20, "target_modules": ["0", "4"], "projection_prng_key": 5, "d_initial": 0.4}),
    "projections from the seed": (layers, {"r": 4, "target_modules": ["0", "2"], "save_projection": False}),
    "dropout, and a module saved": (
        layers,
        {"r": 3, "target_modules": ["0", "2"], "modules_to_save": ["4"], "vera_dropout": 0.5},
    ),
    "gpt2": (gpt2, {"r": 5, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "layers_to_transform": [1]}),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


@torch.no_grad()
def answer(model, x):
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


def theirs_of(build, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HF PEFT warns whenever projections are not saved
        return peft.get_peft_model(build()[0], peft.VeraConfig(**options)).eval()


def their_load(build, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return peft.PeftModel.from_pretrained(build()[0], directory).eval()


def assert_same(ours, theirs, x):
    """Compare the two models' outputs, and the merged models' outputs."""
    for model in (theirs, ours):
        expected, acting = answer(theirs, x), answer(ours, x)
        torch.testing.assert_close(acting, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
        model.merge_adapter()
    torch.testing.assert_close(answer(ours, x), expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def test_ours_in_hf_peft(case, tmp_path):
    build, options = case
    ours = get_peft_model(build()[0], VeraConfig(**options)).eval()
    perturb(ours)
    ours.save_pretrained(tmp_path)
    assert_same(ours, their_load(build, tmp_path), build()[1])


def test_theirs_here(case, tmp_path):
    build, options = case
    theirs = theirs_of(build, options)
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    assert_same(PeftModel.from_pretrained(build()[0], tmp_path), theirs, build()[1])


def test_files_have_the_same_tensors_and_starts(case, tmp_path):
    """Nothing in a new adapter is drawn from anything but the seed, so both start with the same numbers."""
    build, options = case
    get_peft_model(build()[0], VeraConfig(**options)).save_pretrained(tmp_path / "ours")
    theirs_of(build, options).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_the_state_dict_of_hf_peft_is_taken(case):
    build, options = case
    theirs, ours = theirs_of(build, options), get_peft_model(build()[0], VeraConfig(**options)).eval()
    perturb(theirs)
    set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    assert_same(ours, theirs, build()[1])


def test_starts_without_identity_have_one_distribution():
    options = {"r": 4000, "target_modules": ["0"], "init_weights": False}
    ours, theirs = get_peft_model(layers()[0], VeraConfig(**options)), theirs_of(layers, options)
    mine, other = get_peft_model_state_dict(ours), peft.get_peft_model_state_dict(theirs)
    name = "base_model.model.0.vera_lambda_"
    torch.testing.assert_close(mine[f"{name}b"], other[f"{name}b"])
    assert abs(mine[f"{name}d"].std() - other[f"{name}d"].std()) < 0.1
    assert abs(mine[f"{name}d"].mean() - other[f"{name}d"].mean()) < 0.1


@pytest.mark.parametrize("model_type", ["llama", "phi", "gpt2", "t5"])
def test_default_targets_are_hf_peft_s(model_type):
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING as theirs

    from peftcore.registry import registry

    assert registry.default_target_modules("vera", model_type) == theirs[model_type]
