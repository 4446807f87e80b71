"""A prefix in every layer's cache: keys and values written into a cache of transformers, whatever its kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftcore.exceptions import TaskError
from peftcore.prompts.call import Slots
from peftcore.prompts.sizes import PromptSizes

#: Under this name a cache remembers which of its places are virtual tokens; copies of the cache remember it too.
_MARK = "_peftcore_prompt"


def new_cache(model: nn.Module, sizes: PromptSizes, *, static_length: int | None = None) -> Any:
    """Return an empty cache that fits a model, as the model would make it.

    Args:
        model: A transformers model.
        sizes: Its sizes.
        static_length: Makes a static cache of this length.
    """
    from transformers import DynamicCache, EncoderDecoderCache, StaticCache

    config: Any = model.config
    config = config.get_text_config(decoder=True)
    if static_length is None:
        cache: Any = DynamicCache(config=config)
    else:
        cache = StaticCache(config=config, max_cache_len=static_length)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if sizes.is_encoder_decoder else cache


def write_prefix(cache: Any, prefix: Slots, sizes: PromptSizes, model: nn.Module) -> None:
    """Write keys and values behind what a cache holds.

    Args:
        cache: Of any kind that transformers has.
        prefix: ``[rows, slots, layers · 2 · heads · head_dim]``.
        sizes: The model's.
        model: The model, for its dtype.
    """
    own = getattr(cache, "self_attention_cache", cache)
    rows, slots, _ = prefix.values.shape
    length = cache_length(cache)
    places = torch.arange(length, length + slots, device=prefix.values.device)
    shape = rows, slots, 2 * sizes.num_layers, sizes.num_key_value_heads, sizes.head_dim
    both = prefix.values.to(_dtype(model)).reshape(shape).permute(2, 0, 3, 1, 4).unbind()
    for number, (keys, values) in enumerate(zip(both[::2], both[1::2], strict=True)):
        own.update(keys, values, number, {"cache_position": places})


def cache_length(cache: Any) -> int:
    """Return how many tokens a cache holds; 0 for no cache."""
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


def mark(cache: Any, what: Any) -> None:
    """Let a cache remember what virtual tokens it holds."""
    if hasattr(cache, "get_seq_length"):
        setattr(cache, _MARK, what)


def marked(cache: Any) -> Any:
    """Return what a cache remembers of virtual tokens, or None."""
    return getattr(cache, _MARK, None)


def check_keeps_cache(model: nn.Module) -> None:
    """Refuse gradient checkpointing, under which transformers' layers drop the cache, and a prefix in it.

    Raises:
        TaskError: It is on.
    """
    if model.training and _checkpoints(model):
        raise TaskError(
            "With gradient checkpointing, transformers' layers drop the cache, and the prefix in it. "
            "Call gradient_checkpointing_disable(), or use a method whose virtual tokens are embeddings."
        )


def _checkpoints(model: nn.Module) -> bool:
    # What newer transformers call it; there the older name warns.
    name = "is_activation_checkpointing"
    return bool(getattr(model, name if hasattr(type(model), name) else "is_gradient_checkpointing", False))


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's first floating-point parameter, torch's default if there is none."""
    return _first_dtype(model) or torch.get_default_dtype()


def _first_dtype(module: nn.Module) -> torch.dtype | None:
    # Each call asks for it, and torch's own walk over parameters takes ten times as long to begin.
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
    children = (child for child in module._modules.values() if child is not None)
    return next((found for child in children if (found := _first_dtype(child)) is not None), None)
