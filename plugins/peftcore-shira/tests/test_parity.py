"""SHiRA here and in HF PEFT: one file, one output, one choice of entries, one start."""

import warnings

import peft
import pytest
import torch
import transformers
from peft.utils import TRANSFORMERS_MODELS_TO_SHIRA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file
from torch import nn

import peftcore_shira
from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.testing import perturb
from peftcore_shira import ShiraConfig


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 12, bias=False), nn.Tanh(), nn.Linear(12, 3)).eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


def last_columns(base_layer, r, **kwargs):
    """Choose as many entries as LoRA of rank r has numbers, from the end."""
    mask = torch.zeros_like(base_layer.weight)
    mask.view(-1)[-r * sum(mask.shape) :] = 1
    return mask


CASES = {
    "linear": (layers, {"r": 2, "target_modules": ["0", "2"]}, None),
    "seeded": (layers, {"r": 1, "target_modules": ["0", "2", "4"], "random_seed": 7}, None),
    "a mask of one's own": (layers, {"r": 2, "target_modules": ["0", "2"], "random_seed": 1}, last_columns),
    "llama": (llama, {"r": 2, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}, None),
}
INPUTS = {layers: torch.linspace(-2, 2, 24).reshape(4, 6), llama: torch.arange(20).reshape(4, 5) % 11}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def ours(case):
    build, options, mask = case
    config = ShiraConfig(**options)
    if mask is not None:
        config.mask_fn = mask
    return get_peft_model(build(), config)


def theirs(case):
    build, options, mask = case
    config = peft.ShiraConfig(**options)
    if mask is not None:
        config.mask_fn = mask
    return peft.get_peft_model(build(), config).eval()


def answer(model, case):
    with torch.no_grad():
        output = model(INPUTS[case[0]])
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


def tensors(directory):
    return load_file(directory / "adapter_model.safetensors")


def test_ours_in_hf_peft(case, tmp_path):
    model = ours(case)
    perturb(model)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = peft.PeftModel.from_pretrained(case[0](), tmp_path).eval()
    assert_same(answer(model, case), answer(loaded, case))
    assert_same(answer(model.merge_and_unload(), case), answer(loaded.merge_and_unload(), case))


def test_hf_peft_s_here(case, tmp_path):
    model = theirs(case)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case[0](), tmp_path)
    assert_same(answer(loaded, case), answer(model, case))
    assert not torch.allclose(answer(loaded, case), answer(case[0](), case), atol=1e-2)
    loaded.save_pretrained(tmp_path / "again")
    written, again = tensors(tmp_path), tensors(tmp_path / "again")
    assert again.keys() == written.keys()
    assert all(again[name].dtype == value.dtype and torch.equal(again[name], value) for name, value in written.items())
    assert_same(answer(loaded.merge_and_unload(), case), answer(model.merge_and_unload(), case))


def test_the_entries_are_hf_peft_s(case):
    here, there = get_peft_model_state_dict(ours(case)), peft.get_peft_model_state_dict(theirs(case))
    assert here.keys() == there.keys()
    indices = [name for name in here if name.endswith("shira_indices")]
    assert indices
    assert all(torch.equal(here[name], there[name]) for name in indices)


@pytest.mark.parametrize("init", [True, False])
def test_the_start_has_hf_peft_s_distribution(init):
    case = (lambda: nn.Sequential(nn.Linear(300, 200)), {"r": 16, "target_modules": ["0"], "init_weights": init}, None)
    here, there = (dict(make(case).named_parameters()) for make in (ours, theirs))
    (a,), (b,) = ([p for name, p in model.items() if "shira_weight" in name] for model in (here, there))
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.std().item() == pytest.approx(b.std().item(), rel=0.05)
    assert a.mean().item() == pytest.approx(b.mean().item(), abs=0.05)


def test_default_targets_are_hf_peft_s():
    theirs = TRANSFORMERS_MODELS_TO_SHIRA_TARGET_MODULES_MAPPING
    assert theirs
    for model_type, names in theirs.items():
        if not isinstance(names, str):  # one is a regular expression, and stands in the core's table as wildcards
            assert sorted(peftcore_shira.default_target_modules("shira", model_type)) == sorted(names), model_type
    assert peftcore_shira.default_target_modules("c3a", "llama") is None
