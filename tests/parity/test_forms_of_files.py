"""Files in other forms: pickles, shards, names from an older model, embeddings written along."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors import safe_open

from peftcore import PeftModel

from .harness import Case, assert_same, file_tensors, hf_load

CASE = Case("llama", target_modules=["q_proj", "down_proj"])


def test_a_pickle_written_here_is_read_there(tmp_path):
    ours = CASE.ours()
    ours.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert_same(CASE.answer(ours), CASE.answer(hf_load(CASE.build(), tmp_path)))


def test_a_pickle_written_there_is_read_here(tmp_path):
    theirs = CASE.theirs()
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert_same(CASE.answer(PeftModel.from_pretrained(CASE.build(), tmp_path).eval()), CASE.answer(theirs))


def test_the_head_of_the_file_says_what_readers_look_for(tmp_path):
    CASE.ours().save_pretrained(tmp_path / "ours")
    CASE.theirs().save_pretrained(tmp_path / "theirs")

    def head(directory) -> dict[str, str]:
        with safe_open(tmp_path / directory / "adapter_model.safetensors", framework="pt") as file:
            return file.metadata()

    assert head("theirs").items() <= head("ours").items()


def test_names_are_mapped_the_same_way(tmp_path):
    source = CASE.theirs()
    source.save_pretrained(tmp_path)
    old = {name.replace("model.layers.", "model.blocks."): value for name, value in file_tensors(tmp_path).items()}
    torch.save(old, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    mapping = {r"^model\.blocks\.": "model.layers."}
    ours = PeftModel.from_pretrained(CASE.build(), tmp_path, key_mapping=mapping).eval()
    theirs = hf_load(CASE.build(), tmp_path, key_mapping=mapping)
    assert_same(CASE.answer(ours), CASE.answer(theirs))
    assert_same(CASE.answer(ours), CASE.answer(source))


def test_the_meta_device_is_left_by_loading(tmp_path):
    ours = CASE.ours()
    ours.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CASE.build(), tmp_path, low_cpu_mem_usage=True).eval()
    assert_same(CASE.answer(loaded), CASE.answer(hf_load(CASE.build(), tmp_path, low_cpu_mem_usage=True)))


@pytest.mark.parametrize("trainable", [False, True])
def test_what_is_loaded_trains_only_if_asked(trainable, tmp_path):
    CASE.theirs().save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(CASE.build(), tmp_path, is_trainable=trainable)
    theirs = hf_load(CASE.build(), tmp_path, is_trainable=trainable)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


# HF PEFT writes the frozen weight of a targeted embedding along, as `<path>.base_layer.weight`.

EMBEDDING = Case("llama", target_modules=["embed_tokens", "q_proj"])


def test_a_frozen_embedding_written_along_is_understood(tmp_path):
    theirs = EMBEDDING.theirs()
    theirs.save_pretrained(tmp_path)
    assert "base_model.model.model.embed_tokens.base_layer.weight" in file_tensors(tmp_path)
    ours = PeftModel.from_pretrained(EMBEDDING.build(), tmp_path).eval()
    assert_same(EMBEDDING.answer(ours), EMBEDDING.answer(theirs))


def test_a_frozen_embedding_written_along_counts_where_it_differs(tmp_path):
    """It does where rows were added for new tokens: each new base model draws them anew."""
    theirs = EMBEDDING.theirs()
    with torch.no_grad():
        theirs.base_model.model.model.embed_tokens.base_layer.weight[-3:] += 1
    theirs.save_pretrained(tmp_path)
    assert_same(EMBEDDING.answer(hf_load(EMBEDDING.build(), tmp_path)), EMBEDDING.answer(theirs))
    ours = PeftModel.from_pretrained(EMBEDDING.build(), tmp_path).eval()
    assert_same(EMBEDDING.answer(ours), EMBEDDING.answer(theirs))


def test_embeddings_asked_for_are_understood(tmp_path):
    """`save_embedding_layers=True` writes both embeddings under their plain paths."""
    theirs = CASE.theirs()
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    assert "base_model.model.lm_head.weight" in file_tensors(tmp_path)
    ours = PeftModel.from_pretrained(CASE.build(), tmp_path).eval()
    assert_same(CASE.answer(ours), CASE.answer(theirs))


def test_a_file_says_which_modules_are_adapted(tmp_path):
    """Rules for choosing targets differ between versions and models; the names that were chosen do not."""
    case = Case("llama", exclude_modules=["lm_head", "embed_tokens", r"mlp.down_proj"])
    ours = case.ours()
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert_same(case.answer(ours), case.answer(hf_load(case.build(), tmp_path)))


def test_hf_peft_is_the_version_that_the_tests_speak_of():
    assert peft.__version__ == "0.21.2"
