"""Adapters without a PeftModel: keys without the prefix, and state dicts handed over in memory."""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import save_file

import peftcore
from peftcore import LoraConfig, PeftModel

from .harness import Case, answer, assert_same, perturb

CASES = {
    "linear": Case("mlp", target_modules=["first", "second"], lora_bias=False),
    "embedding": Case("words", target_modules=["words", "head"]),
    "decoder": Case("llama", target_modules=["q_proj", "up_proj"]),
    "convolution": Case("conv2d", target_modules=["plain", "pointwise"]),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request) -> Case:
    return request.param


def injected(library, config_cls, case: Case, name: str = "default"):
    model = library.inject_adapter_in_model(config_cls(**case.options), case.build(), name)
    perturb(model)
    return model.eval()


def test_a_state_dict_from_here_acts_the_same_there(case):
    ours = injected(peftcore, LoraConfig, case)
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(**case.options), case.build()).eval()
    result = peft.set_peft_model_state_dict(theirs, peftcore.get_peft_model_state_dict(ours))
    assert not result.unexpected_keys
    assert_same(answer(ours, case.build()), answer(theirs, case.build()))


def test_a_state_dict_from_there_acts_the_same_here(case):
    theirs = injected(peft, peft.LoraConfig, case)
    state = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert not any(key.startswith("base_model") for key in state)
    ours = peftcore.inject_adapter_in_model(LoraConfig(**case.options), case.build()).eval()
    report = peftcore.set_peft_model_state_dict(ours, state)
    assert report.complete
    assert_same(answer(ours, case.build()), answer(theirs, case.build()))


def test_both_hand_out_the_same_names(case):
    """HF PEFT writes names without the prefix for a model that was adapted in place."""
    ours = peftcore.get_peft_model_state_dict(injected(peftcore, LoraConfig, case))
    theirs = peft.get_peft_model_state_dict(injected(peft, peft.LoraConfig, case), save_embedding_layers=False)
    assert set(ours) == set(theirs)


def test_a_state_dict_is_loaded_while_injecting(case):
    theirs = injected(peft, peft.LoraConfig, case)
    state = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    ours = peftcore.inject_adapter_in_model(LoraConfig(**case.options), case.build(), state_dict=state).eval()
    assert_same(answer(ours, case.build()), answer(theirs, case.build()))


def test_a_file_without_the_prefix_is_read(case, tmp_path):
    theirs = injected(peft, peft.LoraConfig, case)
    state = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    LoraConfig(**case.options).save_pretrained(tmp_path)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "adapter_model.safetensors")
    ours = PeftModel.from_pretrained(case.build(), tmp_path).eval()
    assert_same(case.answer(ours), answer(theirs, case.build()))


def test_the_state_dicts_of_two_adapters_are_kept_apart(case):
    ours = injected(peftcore, LoraConfig, case, "a")
    peftcore.inject_adapter_in_model(LoraConfig(**{**case.options, "r": 1}), ours, "b")
    a, b = (peftcore.get_peft_model_state_dict(ours, adapter_name=name) for name in "ab")
    assert set(a) == set(b)
    assert all(a[key].shape != b[key].shape for key in a if a[key].dim() > 1)


def test_values_may_come_from_a_gathered_state_dict(case):
    ours = case.ours()
    doubled = {name: value * 2 for name, value in ours.state_dict().items()}
    taken = peftcore.get_peft_model_state_dict(ours, state_dict=doubled)
    for name, value in peftcore.get_peft_model_state_dict(ours).items():
        assert torch.equal(taken[name], value * 2)
