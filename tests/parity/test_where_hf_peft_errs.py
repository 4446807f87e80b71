"""Where HF PEFT's outputs are not those of W + s · B · A: the folded weight, made by hand, is the judge of ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcore import PeftModel

from .cases import ATTENTION, MERGED_COUNTS
from .harness import Case, assert_same, file_tensors, hf_load
from .test_lora_files import over


def folded_by_hand(case: Case, directory) -> nn.Module:
    """Return the plain model with what the file of an adapter holds added to its weights."""
    model, tensors = case.build(), file_tensors(directory)
    scaling = case.options["lora_alpha"] / case.options["r"]
    for name, a in tensors.items():
        path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        layer = model.get_submodule(path.replace("base_layer.", ""))
        if factor == "A.weight":
            b = tensors[name.replace("lora_A", "lora_B")]
            weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
            change = (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
        elif factor == "embedding_A":
            weight, change = layer.weight, (tensors[name[:-1] + "B"] @ a).T
        else:
            continue
        weight.data += scaling * change
    return model


@over(MERGED_COUNTS | ATTENTION)
def test_a_file_written_there_acts_as_its_folded_weight(case, tmp_path):
    case.theirs().save_pretrained(tmp_path, save_embedding_layers=False)
    ours = PeftModel.from_pretrained(case.build(), tmp_path).eval()
    expected = case.answer(folded_by_hand(case, tmp_path))
    assert_same(case.answer(ours), expected)
    assert_same(case.answer(ours.merge_and_unload()), expected)


@over(MERGED_COUNTS)
def test_a_file_written_here_acts_the_same_there_once_merged(case, tmp_path):
    ours = case.ours()
    ours.save_pretrained(tmp_path)
    assert_same(case.answer(ours), case.answer(hf_load(case.build(), tmp_path).merge_and_unload()))


@over(ATTENTION)
def test_an_attention_written_here_acts_the_same_there_without_its_out_proj(case, tmp_path):
    ours = case.ours()
    with torch.no_grad():
        ours.base_model.model.attention.base_layer.out_proj.lora_B["default"].weight.zero_()
    ours.save_pretrained(tmp_path)
    theirs = hf_load(case.build(), tmp_path)
    assert_same(case.answer(ours), case.answer(theirs))
    assert_same(case.answer(ours.merge_and_unload()), case.answer(theirs.merge_and_unload()))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_the_biases_of_an_attention(bias, tmp_path):
    """HF PEFT trains the one of out_proj, and not in_proj_bias, whose name is another."""
    case = Case("attention", target_modules=["attention", "head"], bias=bias)
    theirs = case.theirs()
    with torch.no_grad():
        theirs.base_model.model.attention.base_layer.out_proj.lora_B["default"].weight.zero_()
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(case.build(), tmp_path).eval()
    assert_same(case.answer(ours), case.answer(theirs))
