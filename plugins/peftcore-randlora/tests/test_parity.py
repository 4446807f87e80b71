"""RandLoRA here and in HF PEFT: one file, one output, one start, and the same bases from one seed."""

import re
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
from peftcore_randlora import RandLoraConfig

torch.set_num_threads(1)


class Layers(nn.Sequential):
    """Layers of different sizes, so that each uses another part of the bases."""

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
    "other seed": (layers, {"r": 20, "target_modules": ["0", "4"], "projection_prng_key": 5}),
    "bases from the seed": (layers, {"r": 4, "target_modules": ["0", "2"], "save_projection": False}),
    "sparse": (layers, {"r": 4, "target_modules": ["0", "2"], "save_projection": False, "sparse": True}),
    "very sparse": (layers, {"r": 4, "target_modules": ["0", "2"], "save_projection": False, "very_sparse": True}),
    "both words": (layers, {"r": 4, "target_modules": ["0"], "sparse": True, "very_sparse": True}),
    "dropout, and a module saved": (
        layers,
        {"r": 3, "target_modules": ["0", "2"], "modules_to_save": ["4"], "randlora_dropout": 0.5},
    ),
    "gpt2": (gpt2, {"r": 5, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
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
        return peft.get_peft_model(build()[0], peft.RandLoraConfig(**options)).eval()


def their_load(build, directory):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(build()[0], directory).eval()
    # It misses the copies that it writes for each layer, and then takes what all layers share.
    missed = [name for warning in said for name in re.findall(r"'(base_model\S+)'", str(warning.message))]
    assert [name for name in missed if not name.endswith((".randlora_A.default", ".randlora_B.default"))] == []
    return model


def assert_same(ours, theirs, x):
    """Compare the two models' outputs, and the merged models' outputs."""
    for model in (theirs, ours):
        expected, acting = answer(theirs, x), answer(ours, x)
        torch.testing.assert_close(acting, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
        model.merge_adapter()
    torch.testing.assert_close(answer(ours, x), expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def test_ours_in_hf_peft(case, tmp_path):
    build, options = case
    ours = get_peft_model(build()[0], RandLoraConfig(**options)).eval()
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
    """Nothing in a new adapter is drawn from anything but the seed, so both start with the same numbers.

    HF PEFT writes the bases once more for each layer.
    """
    build, options = case
    get_peft_model(build()[0], RandLoraConfig(**options)).save_pretrained(tmp_path / "ours")
    theirs_of(build, options).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    copies = {key for key in theirs if key.startswith("base_model.model.") and key.endswith(("lora_A", "lora_B"))}
    assert bool(copies) == options.get("save_projection", True)
    assert ours.keys() == theirs.keys() - copies
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_hf_peft_takes_bases_that_no_seed_gives(tmp_path):
    """What stands once in the file reaches every layer."""
    ours = get_peft_model(layers()[0], RandLoraConfig(r=3, target_modules=["0", "4"])).eval()
    perturb(ours)
    with torch.no_grad():
        for buffer in ours.buffers():
            buffer.add_(0.5)
    ours.save_pretrained(tmp_path)
    assert_same(ours, their_load(layers, tmp_path), layers()[1])


def test_the_state_dict_of_hf_peft_is_taken(case):
    build, options = case
    theirs, ours = theirs_of(build, options), get_peft_model(build()[0], RandLoraConfig(**options)).eval()
    perturb(theirs)
    set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    assert_same(ours, theirs, build()[1])


def test_starts_without_identity_have_one_distribution():
    def wide():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(60, 90)), None

    options = {"r": 2, "target_modules": ["0"], "init_weights": False}
    ours, theirs = get_peft_model(wide()[0], RandLoraConfig(**options)), theirs_of(wide, options)
    mine, other = get_peft_model_state_dict(ours), peft.get_peft_model_state_dict(theirs)
    scales, gamma = "base_model.model.0.randlora_lambda", "base_model.model.0.randlora_gamma"
    torch.testing.assert_close(mine[gamma], other[gamma])
    assert abs(mine[scales].std() - other[scales].std()) < 0.5
    assert abs(mine[scales].mean() - other[scales].mean()) < 0.5


@pytest.mark.parametrize("model_type", ["llama", "phi", "gpt2", "t5"])
def test_default_targets_are_hf_peft_s(model_type):
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_RANDLORA_TARGET_MODULES_MAPPING as theirs

    from peftcore.registry import registry

    assert registry.default_target_modules("randlora", model_type) == theirs[model_type]
