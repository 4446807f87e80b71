"""Prefill: lets a cartridge start from the keys and values that the model itself makes of a text.

The functions have the names that they have in HF PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peftcore import PeftModel
from peftcore.checkpoint import adapter_state, load_adapter_state
from peftcore.exceptions import ConfigError, TaskError
from peftcore.prompts import KeyValueTable
from peftcore.prompts.encoder import as_in_use
from peftcore.tuner import Tuner


def prompt_embeddings_from_past_key_values(past_key_values: Any, *, num_virtual_tokens: int) -> Tensor:
    """Return the keys and values of the first tokens in a cache, as the rows that a cartridge holds.

    Args:
        past_key_values: A cache of transformers, or a (keys, values) per layer, each ``[1, heads, length, head_dim]``.
        num_virtual_tokens: How many tokens.

    Returns:
        ``[tokens, layers · 2 · heads · head_dim]``, in each layer first the keys.

    Raises:
        TaskError: This is no cache of one row, or it does not hold these tokens (any more).
        ConfigError: No token is asked for.
    """
    if num_virtual_tokens < 1:
        raise ConfigError(f"num_virtual_tokens must be at least 1, got {num_virtual_tokens}.")
    parts = [
        _first_tokens(tensor, length, num_virtual_tokens)
        for length, tensors in _layers(past_key_values)
        for tensor in tensors
    ]
    if not parts:
        raise TaskError("past_key_values is empty: call the model with use_cache=True, and pass what it returns.")
    return torch.cat(parts, 1).detach()


def _layers(cache: Any) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Yield how many tokens each layer has seen, and its keys and values."""
    cache = getattr(cache, "self_attention_cache", cache)
    if hasattr(cache, "layers"):
        for layer in cache.layers:
            if isinstance(layer.keys, Tensor):
                yield int(layer.get_seq_length()), (layer.keys, layer.values)
    elif isinstance(cache, (list, tuple)) and all(isinstance(layer, (list, tuple)) for layer in cache):
        for keys, values, *_ in cache:
            yield keys.shape[-2], (keys, values)
    else:
        raise TaskError(f"past_key_values is no cache of keys and values, got {type(cache).__name__}.")


def _first_tokens(tensor: Tensor, length: int, tokens: int) -> Tensor:
    """Return the first tokens of one layer's keys or values, ``[tokens, heads · head_dim]``."""
    if tensor.dim() != 4 or len(tensor) != 1:
        raise TaskError(
            f"A cartridge starts from the cache of one text, [1, heads, length, head_dim], got {list(tensor.shape)}."
        )
    if length < tokens:
        raise TaskError(f"The cache holds {length} tokens, and {tokens} are asked for. Use a longer text.")
    if tensor.shape[2] < length:
        raise TaskError(
            f"Of {length} tokens a layer with a sliding window has kept the last {tensor.shape[2]}. Use a shorter text."
        )
    return tensor[0, :, :tokens].transpose(0, 1).flatten(1)


def initialize_kv_prefix_from_past_key_values(
    model: PeftModel, *, adapter_name: str | None = None, past_key_values: Any, num_virtual_tokens: int | None = None
) -> Tensor:
    """Let a prefix start from the first tokens of a cache.

    Args:
        model: The adapted model.
        adapter_name: A cartridge, or another adapter whose prefix itself trains; the active one if None.
        past_key_values: See :func:`prompt_embeddings_from_past_key_values`.
        num_virtual_tokens: The adapter's, which is what None means.

    Returns:
        What the adapter holds now, ``[tokens, width]``.

    Raises:
        TaskError: The adapter is of another kind, or the cache does not fit it.
        ConfigError: The adapter has another number of tokens.
        AdapterNameError: There is no such adapter.
    """
    tuner = _prefix_tuner(model, adapter_name)
    state = adapter_state(tuner)
    own = state["prompt_embeddings"]
    if num_virtual_tokens not in (None, len(own)):
        raise ConfigError(f"num_virtual_tokens is {num_virtual_tokens}, and adapter {tuner.name!r} has {len(own)}.")
    table = prompt_embeddings_from_past_key_values(past_key_values, num_virtual_tokens=len(own))
    if table.shape != own.shape:
        raise TaskError(
            f"The cache has {table.shape[1]} numbers per token, and adapter {tuner.name!r} {own.shape[1]}: "
            "it comes from another model."
        )
    load_adapter_state(tuner, {**state, "prompt_embeddings": table})
    return table


def initialize_kv_prefix_from_text(
    model: PeftModel,
    tokenizer: Any,
    *,
    text: str,
    adapter_name: str | None = None,
    num_virtual_tokens: int | None = None,
    use_chat_template: bool = True,
    max_length: int | None = None,
) -> Tensor:
    """Let a prefix start from what the model, without adapters, makes of a text's first tokens.

    Args:
        model: The adapted model.
        tokenizer: The model's.
        text: At least as many tokens as the prefix has.
        adapter_name: See :func:`initialize_kv_prefix_from_past_key_values`.
        num_virtual_tokens: Likewise.
        use_chat_template: Make the text a system message, if the tokenizer has a template for chats.
        max_length: Cut the text to so many tokens.

    Returns:
        What the adapter holds now, ``[tokens, width]``.

    Raises:
        TaskError, ConfigError, AdapterNameError: As there.
    """
    tokens = len(adapter_state(_prefix_tuner(model, adapter_name))["prompt_embeddings"])
    ids = _ids(tokenizer, text, use_chat_template)[:max_length]
    if len(ids) < tokens:
        raise TaskError(f"The text gives {len(ids)} tokens, and the prefix has {tokens}. Use a longer text.")
    user_model: Any = model.get_base_model()
    # Later tokens change nothing about the keys and values of earlier ones.
    with model.disable_adapter(), as_in_use(user_model), torch.no_grad():
        cache = user_model(input_ids=torch.tensor([ids[:tokens]], device=user_model.device), use_cache=True)
    return initialize_kv_prefix_from_past_key_values(
        model,
        adapter_name=adapter_name,
        past_key_values=cache.past_key_values,
        num_virtual_tokens=num_virtual_tokens,
    )


def _prefix_tuner(model: PeftModel, name: str | None) -> Tuner:
    """Return the tuner of an adapter that holds a prefix and no network that makes one."""
    names = model.active_adapters if name is None else [name]
    for tuner in (model.base_model.tuner(name) for name in names):
        encoder = tuner.shared
        if isinstance(encoder, KeyValueTable) and encoder.prompt_encoder is None:
            if encoder.sizes.is_encoder_decoder:
                raise TaskError("A prefix starts from a text in models without an encoder alone.")
            return tuner
    raise TaskError(
        f"{', '.join(names) or 'No adapter'} is no adapter that holds keys and values itself, such as a cartridge."
    )


def _ids(tokenizer: Any, text: str, use_chat_template: bool) -> list[int]:
    if not use_chat_template or getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer(text)["input_ids"])
    message = {"role": "system", "content": text}
    return list(tokenizer.apply_chat_template([message], tokenize=True, return_dict=False))
