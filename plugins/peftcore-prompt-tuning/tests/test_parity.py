"""Prompt tuning here and in HF PEFT; tests/parity/test_prompts.py has more architectures, losses and generation."""

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import peftcore
from peftcore.testing import Libraries, ParityCase, ParityTests
from peftcore.testing.models import bert, gpt2, llama, t5

IDS = torch.arange(12).reshape(2, 6) + 3
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS).index_fill(1, torch.tensor([5]), 0)}
TOKENS = {"num_virtual_tokens": 3}


def case(build, task, inputs=INPUTS, **options):
    return ParityCase(build, inputs, {"task_type": task, **TOKENS, **options}, model_scale=0.2)


class TestParity(ParityTests):
    method = "prompt_tuning"
    cases = {
        "gpt2": case(gpt2, "CAUSAL_LM"),
        "llama": case(llama, "CAUSAL_LM"),
        "bert": case(bert, "SEQ_CLS"),
        "t5": case(t5, "SEQ_2_SEQ_LM", {**INPUTS, "decoder_input_ids": IDS[:, :3]}),
        "sample": case(gpt2, "CAUSAL_LM", prompt_tuning_init="SAMPLE_VOCAB"),
    }
    starts = {
        "random": ParityCase(
            lambda: gpt2(n_embd=64, n_positions=128), options={"task_type": "CAUSAL_LM", "num_virtual_tokens": 100}
        ),
        "both parts": ParityCase(
            lambda: t5(d_model=64), options={"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 50}
        ),
        "sample": ParityCase(
            lambda: gpt2(n_embd=64, n_positions=128, vocab_size=1000),
            options={"task_type": "CAUSAL_LM", "num_virtual_tokens": 100, "prompt_tuning_init": "SAMPLE_VOCAB"},
        ),
    }


@pytest.mark.parametrize("tokens", [2, 7])
def test_a_text_starts_the_same(tokens, tmp_path):
    known = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="c"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=known).save_pretrained(tmp_path)
    text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "b c a", "tokenizer_name_or_path": str(tmp_path)}
    for build, task in ((gpt2, "CAUSAL_LM"), (t5, "SEQ_2_SEQ_LM")):
        libraries = Libraries("prompt_tuning", case(build, task, num_virtual_tokens=tokens, **text))
        ours, theirs = libraries.new_states()
        assert torch.equal(ours["prompt_embeddings"], theirs["prompt_embeddings"])


def test_with_padding_on_the_left_hf_peft_counts_positions_as_if_there_were_none(tmp_path):
    """A row has other positions there than alone; here it has the same, and so the same logits."""
    libraries = Libraries("prompt_tuning", case(gpt2, "CAUSAL_LM"))
    theirs = libraries.theirs()
    theirs.save_pretrained(tmp_path)
    ours = libraries.load_here(tmp_path)
    padded = {"input_ids": torch.tensor([[0, 0, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}
    apart = {}
    with torch.no_grad():
        for library, model in ((peft, theirs), (peftcore, ours)):
            alone = model(input_ids=padded["input_ids"][:, 2:]).logits
            apart[library] = (model(**padded).logits[:, -2:] - alone[:, -2:]).abs().max()
    assert apart[peftcore] < 1e-5 and apart[peft] > 1e-2


def test_labels_of_tokens_and_answers_are_beyond_hf_peft():
    """There labels stay as long as the tokens (an error), and places in the text count from the first virtual token."""
    build = pytest.importorskip("transformers").BertForTokenClassification

    def tagger():
        return build(bert().config)

    libraries = Libraries("prompt_tuning", case(tagger, "TOKEN_CLS"))
    labels = torch.zeros_like(IDS)
    with pytest.raises(ValueError, match="batch_size"):
        libraries.theirs()(**INPUTS, labels=labels)
    assert torch.isfinite(libraries.ours()(**INPUTS, labels=labels).loss)
