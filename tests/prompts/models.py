"""Tiny transformers of many architectures, and what the tests of prompts ask of them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

import peftcore
from peftcore.registry import registry

VOCABULARY = 30
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_GROUPED = {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 1}
#: Smaller than what the tests put into a sequence, so that windows slide.
_WINDOW = {"head_dim": 8, "sliding_window": 5}
_GPT = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_BERT = {**_SIZES, "intermediate_size": 24, "max_position_embeddings": 32, "num_labels": 3}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    **{
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
    },
    "decoder_start_token_id": 2,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}

BUILDERS: dict[str, Any] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT, **_ENDS)),
    "gpt_bigcode": lambda: tf.GPTBigCodeForCausalLM(tf.GPTBigCodeConfig(**_GPT, **_ENDS)),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**_SIZES, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_GROUPED)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_GROUPED, sliding_window=5)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_GROUPED, head_dim=8)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_GROUPED, **_WINDOW)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**_GROUPED, **_WINDOW, layer_types=["sliding_attention", "full_attention"])
    ),
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_BERT)),
    "bert, features": lambda: tf.BertModel(tf.BertConfig(**_BERT)),
    "bert, tokens": lambda: tf.BertForTokenClassification(tf.BertConfig(**_BERT)),
    "bert, answers": lambda: tf.BertForQuestionAnswering(tf.BertConfig(**{**_BERT, "num_labels": 2})),
    "bert, several labels": lambda: tf.BertForSequenceClassification(
        tf.BertConfig(**_BERT, problem_type="multi_label_classification")
    ),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**_BERT)),
    "gpt2, sequences": lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(**_GPT, **_ENDS, num_labels=3)),
    "llama, sequences": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**_GROUPED, num_labels=3, pad_token_id=0)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5, decoder_start_token_id=0)),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**_BART, max_position_embeddings=32)),
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            **_BART,
            **_ENDS,
            num_mel_bins=4,
            max_source_positions=6,
            max_target_positions=32,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ),
}

#: Decoders that have little in common: grouped-query attention with rotary positions, a table of positions, a sliding
#: window beside full attention, positions as a bias, positions counted over the mask.
DECODERS = ("llama", "gpt2", "gemma3", "bloom", "opt")
METHODS = ("prompt_tuning", "prefix_tuning")

#: Rows of 4, 3 and 2 tokens, and their padding on either side; no token is the padding.
TOKENS = ([3, 4, 5, 6], [7, 8, 9], [10, 11])


def padded(side: str, rows: Any = TOKENS) -> dict[str, Tensor]:
    """Return ids and mask of rows, padded on one side to the length of the longest."""
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    join = (lambda gap, row: gap + row) if side == "left" else (lambda gap, row: row + gap)
    return {
        "input_ids": torch.tensor([join(gap, list(row)) for gap, row in zip(gaps, rows, strict=True)]),
        "attention_mask": torch.tensor([join(gap, [1] * len(row)) for gap, row in zip(gaps, rows, strict=True)]),
    }


def build(name: str) -> Any:
    """Return a fresh copy of the model of this name; all copies have the same weights."""
    return copy.deepcopy(_made(name))


@functools.cache
def _made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]()
        with torch.no_grad():
            # As transformers initialises them, models hardly look at their input: errors would hide.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def config(method: str, tokens: int = 3, **options: Any) -> Any:
    return registry[method].config_cls(num_virtual_tokens=tokens, **options)


def lora(**options: Any) -> Any:
    return registry["lora"].config_cls(
        **{"r": 2, "target_modules": "all-linear", "init_lora_weights": False, **options}
    )


def prompted(model: str, method: str = "prompt_tuning", tokens: int = 3, **options: Any) -> Any:
    """Return a model with virtual tokens; its weights and theirs are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peftcore.get_peft_model(build(model), config(method, tokens, **options)).eval()


def encoder(model: Any, name: str = "default") -> Any:
    """Return what makes an adapter's virtual tokens."""
    return model.base_model.tuner(name).encoder


@torch.no_grad()
def logits(model: Any, *args: Any, **kwargs: Any) -> Tensor:
    output = model(*args, **kwargs)
    found: Tensor = output.last_hidden_state if "last_hidden_state" in output else output.logits
    return found


def continued(model: Any, *args: Any, new: int = 6, **kwargs: Any) -> Tensor:
    """Return what a model writes behind its input, greedily if nothing else is asked for."""
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": new}
    sequences: Tensor = model.generate(*args, **{**settings, **kwargs})
    return sequences


def one_step_after_another(model: Any, ids: Tensor, new: int = 6) -> Tensor:
    """Return what a model writes greedily, each step computed from the beginning."""
    for _ in range(new):
        ids = torch.cat([ids, logits(model, input_ids=ids)[:, -1:].argmax(-1)], 1)
    return ids


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def different(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)
