"""Copies of models with prompts, and their files."""

import copy
import io

import pytest
import torch

import peftcore
from peftcore.exceptions import CheckpointError
from peftcore.testing import Snapshot

from .models import METHODS, build, config, continued, different, encoder, logits, lora, padded, prompted, same

BATCH = padded("left")
CASES = [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")]


def inputs(name):
    return {**padded("right"), "decoder_input_ids": BATCH["input_ids"]} if name == "t5" else padded("right")


def pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_copy_is_a_model_of_its_own(method, name, task, copied):
    model = prompted(name, method, task_type=task)
    expected = logits(model, **inputs(name))
    other = copied(model)
    same(logits(other, **inputs(name)), expected)
    with torch.no_grad():
        encoder(other).prompt_embeddings.mul_(-2.0)
    assert different(logits(other, **inputs(name)), expected)
    same(logits(model, **inputs(name)), expected)
    other.delete_adapter("default")
    same(logits(model, **inputs(name)), expected)
    assert not [hook for module in other.modules() for hook in module._forward_pre_hooks]
    if name != "bert":
        assert continued(model, **padded("right")).shape[0] == 3


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(method, name, task, tmp_path):
    model = prompted(name, method, task_type=task)
    model.add_adapter("other", config(method, 2, task_type=task))
    expected = logits(model, **inputs(name))
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        again = peftcore.PeftModel.from_pretrained(build(name), tmp_path, **options).eval()
        report = again.load_adapter(tmp_path / "other", "other", **options)
        assert report.complete
        same(logits(again, **inputs(name)), expected)
        again.set_adapter("other")
        model.set_adapter("other")
        same(logits(again, **inputs(name)), logits(model, **inputs(name)))
        model.set_adapter("default")
        trains = [n for n, parameter in again.named_parameters() if parameter.requires_grad]
        assert bool(trains) == ("is_trainable" in options)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_file_holds(method, tmp_path):
    model = prompted("bert", method, task_type="SEQ_CLS")
    names = set(peftcore.get_peft_model_state_dict(model))
    assert names == {"prompt_embeddings", "base_model.classifier.weight", "base_model.classifier.bias"}
    assert model.peft_config["default"].to_dict()["num_layers"] == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_state_of_the_whole_model_has_the_adapter_s(method):
    model = prompted("llama", method)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    taken = peftcore.get_peft_model_state_dict(model, state_dict=state)
    same(taken["prompt_embeddings"], encoder(model).prompt_embeddings + 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_state_changes_nothing(method):
    model = prompted("llama", method)
    expected, right = logits(model, **BATCH), peftcore.get_peft_model_state_dict(model)["prompt_embeddings"]
    before = Snapshot.of(model.get_base_model())
    for state, problem in (
        ({"prompt_embeddings": right[:2]}, "of another shape"),
        ({}, "missing"),
        ({"prompt_embeddings": right, "other": right}, "not known"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            peftcore.set_peft_model_state_dict(model, state)
    before.assert_same(model.get_base_model(), "a wrong state was refused", "")
    assert torch.equal(logits(model, **BATCH), expected)
    peftcore.set_peft_model_state_dict(model, {"prompt_embeddings": right * 2})
    assert different(logits(model, **BATCH)[:, -4:], expected[:, -4:])


def test_neighbours_are_saved_each_by_itself(tmp_path):
    model = prompted("llama", "prefix_tuning")
    model.add_adapter("lora", lora())
    model.set_adapter(["default", "lora"])
    model.save_pretrained(tmp_path)
    again = peftcore.PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    again.load_adapter(tmp_path / "lora", "lora")
    again.set_adapter(["default", "lora"])
    same(logits(again, **BATCH), logits(model, **BATCH))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_adapted_in_place_keeps_its_file_s_names(method):
    plain = build("llama")
    peftcore.inject_adapter_in_model(config(method), plain)
    assert set(peftcore.get_peft_model_state_dict(plain)) == {"prompt_embeddings"}
