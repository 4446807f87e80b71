"""Prompt tuning and prefix tuning on many architectures, here and in HF PEFT.

Rows are padded on the right or not at all: with padding on the left, HF PEFT counts positions as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftcore
from peftcore.testing import Libraries, ParityCase
from peftcore.testing.parity import save, their_state

from ..prompts.models import build

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
WHOLE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TEXT = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
CLASSES = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 2])}

DECODERS = ("gpt2", "gpt_bigcode", "bloom", "opt", "llama", "mistral", "qwen3", "gemma2", "gemma3")
ENCODERS = ("bert", "roberta")
BOTH = ("t5", "bart")
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
METHODS = ("prompt_tuning", "prefix_tuning")


def libraries(method: str, architecture: str, **options: Any) -> Libraries:
    task = "SEQ_CLS" if architecture in ENCODERS else "SEQ_2_SEQ_LM" if architecture in BOTH else "CAUSAL_LM"
    case = ParityCase(lambda: build(architecture), options={"task_type": task, "num_virtual_tokens": 3, **options})
    return Libraries(method, case, scale=0.2)


@torch.no_grad()
def assert_same(ours: Any, theirs: Any, inputs: Mapping[str, Tensor]) -> None:
    """Check that logits and loss are equal to 1e-5."""
    here, there = ours(**inputs), theirs(**inputs)
    with ours.disable_adapter():
        frozen = ours(**inputs)
    assert (here.loss - frozen.loss).abs() > 1e-3, "the virtual tokens do nothing, so nothing is compared"
    for name in ("logits", "loss"):
        scale = max(1.0, there[name].abs().max().item())
        torch.testing.assert_close(here[name], there[name], rtol=0, atol=1e-5 * scale)


def assert_writes_the_same(ours: Any, theirs: Any, **inputs: Any) -> None:
    here, there = ours.generate(**inputs, **GREEDY), theirs.generate(**inputs, **GREEDY)
    assert torch.equal(here, there)


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS, *BOTH])
@pytest.mark.parametrize("method", METHODS)
def test_files_go_both_ways(method: str, architecture: str, tmp_path: Path) -> None:
    both, inputs = libraries(method, architecture), CLASSES if architecture in ENCODERS else TEXT
    ours, theirs = both.ours(), both.theirs()
    here, there = save(ours, tmp_path / "here"), save(theirs, tmp_path / "there")
    assert {name: value.shape for name, value in here.items()} == {name: value.shape for name, value in there.items()}
    assert_same(ours, both.load_there(tmp_path / "here"), inputs)
    assert_same(both.load_here(tmp_path / "there"), theirs, inputs)


@pytest.mark.parametrize("architecture", [*DECODERS, *BOTH])
@pytest.mark.parametrize("method", METHODS)
def test_both_write_the_same(method: str, architecture: str) -> None:
    both = libraries(method, architecture)
    ours, theirs = both.ours(), both.theirs()
    peftcore.set_peft_model_state_dict(ours, their_state(theirs))
    assert_writes_the_same(ours, theirs, **WHOLE)
    if architecture in BOTH:
        assert_writes_the_same(ours, theirs, input_ids=IDS, attention_mask=MASK)
