"""Prefix tuning here and in HF PEFT; tests/parity/test_prompts.py has more architectures, losses and generation."""

import peft
import pytest
import torch

import peftcore
from peftcore.exceptions import CheckpointError
from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, gpt2, llama, t5
from peftcore.testing.parity import save

IDS = torch.arange(12).reshape(2, 6) + 3
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([5]), 0)}


def case(build, task, inputs=INPUTS, **options):
    return ParityCase(build, inputs, {"task_type": task, "num_virtual_tokens": 3, **options}, model_scale=0.2)


def deep_t5():
    return t5(num_layers=3)


SEQ2SEQ = {**INPUTS, "decoder_input_ids": IDS[:, :3]}


class TestParity(ParityTests):
    method = "prefix_tuning"
    cases = {
        "gpt2": case(gpt2, "CAUSAL_LM"),
        "llama": case(llama, "CAUSAL_LM"),
        "bert": case(bert, "SEQ_CLS"),
        "t5": case(deep_t5, "SEQ_2_SEQ_LM", SEQ2SEQ),
        "zero": case(gpt2, "CAUSAL_LM", init_weights="zero"),
    }
    starts = {
        "random": ParityCase(lambda: gpt2(n_embd=64), options={"task_type": "CAUSAL_LM", "num_virtual_tokens": 12}),
        "zero": ParityCase(gpt2, options={"task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "init_weights": "zero"}),
    }


@pytest.mark.parametrize("hidden", [None, 20])
@pytest.mark.parametrize(
    ("build", "task", "inputs"), [(llama, "CAUSAL_LM", INPUTS), (deep_t5, "SEQ_2_SEQ_LM", SEQ2SEQ)]
)
def test_a_projected_prefix_goes_both_ways(build, task, inputs, hidden, tmp_path):
    """HF PEFT writes the finished prefix alone; what is written here beside it, it does not look at."""
    libraries = Libraries(
        "prefix_tuning", case(build, task, inputs, prefix_projection=True, encoder_hidden_size=hidden)
    )
    ours, theirs, answer = libraries.ours(), libraries.theirs(), libraries.case.answer
    here, there = save(ours, tmp_path / "here"), save(theirs, tmp_path / "there")
    assert there.keys() == {"prompt_embeddings"} and here["prompt_embeddings"].shape == there["prompt_embeddings"].shape
    frozen = answer(libraries.case.frozen())
    for written, read in (
        (ours, libraries.load_there(tmp_path / "here")),
        (theirs, libraries.load_here(tmp_path / "there")),
    ):
        torch.testing.assert_close(answer(read), answer(written), rtol=0, atol=1e-5 * frozen.abs().max().item())
        assert (answer(written) - frozen).abs().max() > 1e-3
    with pytest.raises(CheckpointError, match="training can't go on"):
        libraries.load_here(tmp_path / "there", is_trainable=True)


def test_the_network_is_as_large_as_there():
    libraries = Libraries("prefix_tuning", case(llama, "CAUSAL_LM", prefix_projection=True, encoder_hidden_size=20))
    sizes = [
        sorted(tuple(p.shape) for p in model.parameters() if p.requires_grad)
        for model in (libraries.ours(), libraries.theirs())
    ]
    assert sizes[0] == sizes[1]


def test_with_padding_on_the_left_hf_peft_counts_positions_as_if_there_were_none(tmp_path):
    """A row has other positions there than alone; here it has the same, and so the same logits."""
    libraries = Libraries("prefix_tuning", case(gpt2, "CAUSAL_LM"))
    theirs = libraries.theirs()
    theirs.save_pretrained(tmp_path)
    ours = libraries.load_here(tmp_path)
    padded = {"input_ids": torch.tensor([[0, 0, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    apart = {}
    with torch.no_grad():
        for library, model in ((peft, theirs), (peftcore, ours)):
            alone = model(input_ids=padded["input_ids"][:, 2:], attention_mask=torch.ones(1, 2)).logits
            apart[library] = (model(**padded).logits[:, -2:] - alone).abs().max()
    assert apart[peftcore] < 1e-5 and apart[peft] > 1e-2
