"""VB-LoRA here and in HF PEFT: both forms of files, one output, one start."""

import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.testing import perturb
from peftcore_vblora import VBLoRAConfig

torch.set_num_threads(1)


class Layers(nn.Sequential):
    """Layers of different sizes, so that each uses another number of vectors."""

    def __init__(self):
        super().__init__(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4, bias=False), nn.Tanh(), Conv1D(8, 4))


def layers():
    torch.manual_seed(0)
    return Layers().eval(), torch.randn(3, 6)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, use_cache=False)
    return transformers.GPT2LMHeadModel(config).eval(), torch.arange(20).reshape(4, 5) % 11


CASES = {
    "layers": (layers, {"r": 3, "num_vectors": 5, "vector_length": 2, "target_modules": ["0", "2", "4"]}),
    "top k alone": (
        layers,
        {"num_vectors": 300, "vector_length": 2, "topk": 3, "target_modules": ["0"], "save_only_topk_weights": True},
    ),
    "top one alone": (
        layers,
        {"num_vectors": 9, "vector_length": 2, "topk": 1, "target_modules": ["0", "2"], "save_only_topk_weights": True},
    ),
    "dropout, and a module saved": (
        layers,
        {
            "num_vectors": 5,
            "vector_length": 2,
            "target_modules": ["0", "2"],
            "modules_to_save": ["4"],
            "vblora_dropout": 0.5,
        },
    ),
    "gpt2": (
        gpt2,
        {"num_vectors": 6, "vector_length": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    ),
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
        warnings.simplefilter("ignore")
        return peft.get_peft_model(build()[0], peft.VBLoRAConfig(**options)).eval()


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
    ours = get_peft_model(build()[0], VBLoRAConfig(**options)).eval()
    perturb(ours)
    ours.save_pretrained(tmp_path)
    assert_same(ours, their_load(build, tmp_path), build()[1])


def test_theirs_here(case, tmp_path):
    build, options = case
    theirs = theirs_of(build, options)
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    assert_same(PeftModel.from_pretrained(build()[0], tmp_path), theirs, build()[1])


def test_files_have_the_same_tensors(case, tmp_path):
    """The same names, shapes and dtypes."""
    build, options = case
    get_peft_model(build()[0], VBLoRAConfig(**options)).save_pretrained(tmp_path / "ours")
    theirs_of(build, options).save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        {key: (t.shape, t.dtype) for key, t in load_file(tmp_path / who / "adapter_model.safetensors").items()}
        for who in ("ours", "theirs")
    )
    assert ours == theirs


@pytest.mark.parametrize("vectors", [255, 256, 2**15 - 1, 2**15])
def test_indices_are_as_large_as_hf_peft_s(vectors):
    options = {"vector_length": 2, "num_vectors": vectors, "r": 1, "target_modules": ["2"]}
    options["save_only_topk_weights"] = True
    ours = get_peft_model_state_dict(get_peft_model(layers()[0], VBLoRAConfig(**options)))
    theirs = peft.get_peft_model_state_dict(theirs_of(layers, options))
    assert {key: t.dtype for key, t in ours.items()} == {key: t.dtype for key, t in theirs.items()}


def test_starts_have_one_distribution():
    def wide():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(60, 90)), None

    options = {"num_vectors": 100, "vector_length": 30, "target_modules": ["0"]}
    options |= {"init_vector_bank_bound": 0.7, "init_logits_std": 0.4}
    ours, theirs = get_peft_model(wide()[0], VBLoRAConfig(**options)), theirs_of(wide, options)
    mine, other = get_peft_model_state_dict(ours), peft.get_peft_model_state_dict(theirs)
    assert mine.keys() == other.keys()
    for key in mine:
        assert abs(mine[key].std() / other[key].std() - 1) < 0.1
        assert abs(mine[key].mean() - other[key].mean()) < 0.05
    bank = "base_model.vblora_vector_bank"
    assert 0.69 < mine[bank].abs().max() <= 0.7
    assert 0.69 < other[bank].abs().max() <= 0.7


@pytest.mark.parametrize("model_type", ["llama", "bart", "gpt2", "t5", "deberta-v2"])
def test_default_targets_are_hf_peft_s(model_type):
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_VBLORA_TARGET_MODULES_MAPPING as theirs

    from peftcore.registry import registry

    assert registry.default_target_modules("vblora", model_type) == theirs[model_type]
