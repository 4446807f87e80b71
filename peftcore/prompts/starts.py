"""Starts: tokens of a model's vocabulary, for virtual tokens that begin as real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcore.exceptions import ConfigError
from peftcore.prompts.sizes import input_embedding
from peftcore.slots import unwrap


@torch.no_grad()
def embedded(model: nn.Module, ids: Tensor) -> Tensor:
    """Return a copy of what a model's embedding makes of token ids ``[tokens]``, ``[tokens, dim]``.

    Raises:
        ConfigError: An id is not in the model's vocabulary.
    """
    words = input_embedding(model)
    table = unwrap(words).weight
    assert isinstance(table, Tensor), "an embedding has a table"
    if ids.is_meta or table.is_meta:
        return table.new_empty(len(ids), table.shape[-1], device="meta")
    foreign = sorted({token for token in ids.tolist() if not 0 <= token < len(table)})
    if foreign:
        raise ConfigError(f"Token ids {foreign} are not in the model's vocabulary, which has {len(table)} tokens.")
    return words(ids.to(table.device)).detach().clone()


def ids_of_text(text: str, tokens: int, tokenizer: str, tokenizer_kwargs: Mapping[str, Any] | None = None) -> Tensor:
    """Return the token ids of a text, repeated or cut to a number of tokens.

    Args:
        text: The text.
        tokens: How many ids are wanted.
        tokenizer: Name or path of a tokenizer of transformers.
        tokenizer_kwargs: Keywords for loading it.

    Raises:
        ConfigError: The text gives no token, or the tokenizer can't be loaded.
    """
    from transformers import AutoTokenizer

    try:
        read = AutoTokenizer.from_pretrained(tokenizer, **(tokenizer_kwargs or {}))
    except OSError as error:
        raise ConfigError(f"The tokenizer {tokenizer!r} can't be loaded: {error}") from error
    ids = read(text)["input_ids"]
    if not ids:
        raise ConfigError(f"The text {text!r} gives no token, so virtual tokens can't start from it.")
    return torch.tensor((ids * -(-tokens // len(ids)))[:tokens])
