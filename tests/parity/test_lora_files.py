"""A file written by one library acts the same in the other, forward and merged, whatever LoRA was asked."""

from __future__ import annotations

import pytest
import torch

from peftcore import PeftModel

from .cases import CASES, GROUPED, POINTWISE, REWRITTEN, TIED
from .harness import Case, assert_same, file_tensors, hf_load


def over(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", list(cases.values()), ids=list(cases))


def check_written_here(case: Case, directory, *, merged: bool) -> None:
    ours = case.ours()
    ours.save_pretrained(directory)
    theirs = hf_load(case.build(), directory)
    expected = case.answer(ours)
    assert (expected - case.answer(case.build())).abs().max() > 0.01, "the adapter does nothing"
    assert_same(expected, case.answer(theirs))
    if merged:
        ours.merge_adapter()
        theirs.merge_adapter()
        assert_same(case.answer(ours), case.answer(theirs))
        assert_same(case.answer(ours), expected)


def check_written_there(case: Case, directory, *, merged: bool, **kwargs) -> None:
    theirs = case.theirs()
    theirs.save_pretrained(directory, **kwargs)
    ours = PeftModel.from_pretrained(case.build(), directory).eval()
    expected = case.answer(theirs)
    assert (expected - case.answer(case.build())).abs().max() > 0.01, "the adapter does nothing"
    assert_same(case.answer(ours), expected)
    if merged:
        assert_same(case.answer(ours.merge_and_unload()), case.answer(theirs.merge_and_unload()))


@over(CASES)
def test_a_file_written_here_acts_the_same_there(case, tmp_path):
    check_written_here(case, tmp_path, merged=True)


@over(CASES)
def test_a_file_written_there_acts_the_same_here(case, tmp_path):
    check_written_there(case, tmp_path, merged=True)


@over(CASES | TIED | GROUPED | POINTWISE)
def test_both_write_the_same_tensors(case, tmp_path):
    case.theirs().save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours = PeftModel.from_pretrained(case.build(), tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    there, here = file_tensors(tmp_path / "theirs"), file_tensors(tmp_path / "ours")
    # HF PEFT writes biases of saved modules under their live names as well, and does not read them again.
    there = {name: value for name, value in there.items() if not LIVE.intersection(name.split("."))}
    assert set(here) == set(there)
    for name in here:
        assert torch.equal(here[name], there[name]), name


LIVE = {"modules_to_save", "original_module"}


@over(TIED)
def test_an_adapter_on_tied_weights_written_here_acts_the_same_there(case, tmp_path):
    check_written_here(case, tmp_path, merged=False)


@over(TIED)
@pytest.mark.parametrize("save_embedding_layers", [False, "auto"])
def test_an_adapter_on_tied_weights_written_there_acts_the_same_here(case, tmp_path, save_embedding_layers):
    check_written_there(case, tmp_path, merged=False, save_embedding_layers=save_embedding_layers)


@over(TIED)
def test_merging_into_a_shared_weight_changes_only_what_is_adapted(case):
    ours = case.ours()
    expected = case.answer(ours)
    ours.merge_adapter()
    assert_same(case.answer(ours), expected)
    ours.unmerge_adapter()
    assert_same(case.answer(ours), expected)
    assert_same(case.answer(ours.merge_and_unload()), expected)


@over(GROUPED | POINTWISE)
def test_what_can_not_be_merged_there_and_is_written_here_acts_the_same_there(case, tmp_path):
    check_written_here(case, tmp_path, merged=False)


@over(GROUPED | POINTWISE)
def test_what_can_not_be_merged_there_and_is_written_there_acts_the_same_here(case, tmp_path):
    check_written_there(case, tmp_path, merged=False)


@over(REWRITTEN)
def test_targets_that_are_rewritten_there_are_understood_here(case, tmp_path):
    check_written_there(case, tmp_path, merged=True)
