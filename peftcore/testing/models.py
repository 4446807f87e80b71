"""Tiny models that are built from nothing: of torch's layers, and of transformers' architectures.

They take a few milliseconds to build, and are there for comparing two libraries, or two ways to compute the same.
"""

from __future__ import annotations

from typing import Any

from torch import nn

#: Token ids of the transformers models lie below this.
VOCABULARY = 30


def mlp() -> nn.Module:
    """Return three linear layers, ``"0"`` 8 → 12, ``"2"`` 12 → 10 without a bias, and ``"4"`` 10 → 4."""
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10, bias=False), nn.Tanh(), nn.Linear(10, 4))


def convolutions(dims: int, *, groups: int = 2, padding: int | str = "same") -> nn.Module:
    """Return three convolutions of 4 → 8 → 6 → 4 channels: ``"0"`` strided, ``"2"`` grouped, ``"4"`` of size 1.

    Args:
        dims: 1, 2 or 3 spatial dimensions.
        groups: Of the second.
        padding: Of the second; 1 means what ``"same"`` does.
    """
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(
        conv(4, 8, 3, stride=2, bias=False),
        nn.Tanh(),
        conv(8, 6, 3, padding=padding, groups=groups),
        nn.Tanh(),
        conv(6, 4, 1),
    )


def llama(**options: Any) -> nn.Module:
    """Return a decoder of two layers with grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(**{"vocab_size": VOCABULARY, "num_key_value_heads": 1, "use_cache": False, **sizes, **options})
    )


def gpt2(**options: Any) -> nn.Module:
    """Return a decoder of two layers whose projections are transformers' ``Conv1D``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "use_cache": False}
    return GPT2LMHeadModel(GPT2Config(**{"vocab_size": VOCABULARY, **sizes, **options}))


def bert(**options: Any) -> nn.Module:
    """Return an encoder of one layer with a head for two labels."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(**{"vocab_size": VOCABULARY, **sizes, **options}))


def t5(**options: Any) -> nn.Module:
    """Return an encoder and a decoder of one layer each."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**{"vocab_size": VOCABULARY, **sizes, **options}))
