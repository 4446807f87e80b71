"""A file written by one library acts the same in the other, forward and merged, whatever LoRA was asked."""

from __future__ import annotations

import pytest
import torch

from peftcore import PeftModel

from .cases import CASES
from .harness import Case, assert_same, file_tensors, hf_load


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request) -> Case:
    return request.param


def test_a_file_written_here_acts_the_same_there(case, tmp_path):
    ours = case.ours()
    ours.save_pretrained(tmp_path)
    theirs = hf_load(case.build(), tmp_path)
    expected = case.answer(ours)
    assert (expected - case.answer(case.build())).abs().max() > 0.01, "the adapter does nothing"
    assert_same(expected, case.answer(theirs))
    ours.merge_adapter()
    theirs.merge_adapter()
    assert_same(case.answer(ours), case.answer(theirs))
    assert_same(case.answer(ours), expected)


def test_a_file_written_there_acts_the_same_here(case, tmp_path):
    theirs = case.theirs()
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(case.build(), tmp_path).eval()
    expected = case.answer(theirs)
    assert (expected - case.answer(case.build())).abs().max() > 0.01, "the adapter does nothing"
    assert_same(case.answer(ours), expected)
    assert_same(case.answer(ours.merge_and_unload()), case.answer(theirs.merge_and_unload()))


def test_both_write_the_same_tensors(case, tmp_path):
    case.ours().save_pretrained(tmp_path / "ours")
    hf_load(case.build(), tmp_path / "ours").save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours, theirs = file_tensors(tmp_path / "ours"), file_tensors(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
