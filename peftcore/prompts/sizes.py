"""PromptSizes: what a prompt must fit, read from the model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from peftcore.exceptions import TaskError
from peftcore.slots import unwrap


@dataclass(frozen=True)
class PromptSizes:
    """Sizes of a model, as virtual tokens see them.

    Attributes:
        token_dim: Width of the input embeddings.
        num_layers: Layers that keep keys and values; of an encoder-decoder model, the decoder's.
        num_attention_heads: Heads of the queries.
        num_key_value_heads: Heads of the keys and values, fewer where queries are grouped.
        head_dim: Width of a head.
        positions: The longest sequence that the model has positions for; None if there is no limit.
        positions_from: The id of the padding, if positions are counted over the other ids, as in RoBERTa.
        positions_from_mask: Whether the model counts positions over what a mask shows by itself, as OPT does.
        is_encoder_decoder: Whether the model has both.
        is_causal: Whether it is a decoder alone, whose tokens see only those before them.
    """

    token_dim: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    positions: int | None
    positions_from: int | None
    positions_from_mask: bool
    is_encoder_decoder: bool
    is_causal: bool


def input_embedding(model: nn.Module) -> nn.Module:
    """Return the module that embeds a model's tokens, as it stands in the model.

    Raises:
        TaskError: The model names none.
    """
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        found = None
    if not isinstance(found, nn.Module):
        raise TaskError(
            f"{type(model).__name__} has no input embeddings that virtual tokens could stand among: a prompt method "
            "needs a model with get_input_embeddings(), as transformers' models have it."
        )
    return found


def prompt_sizes(model: nn.Module) -> PromptSizes:
    """Read the sizes of a model.

    Raises:
        TaskError: The model has no config, or one that does not say them.
    """
    config = _text_config(model)
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    decoder = "decoder_" if encoder_decoder else ""
    width = _first(model, config, "hidden_size", "d_model", "n_embd")
    heads = _first(model, config, f"{decoder}attention_heads", "num_attention_heads", "n_head", "num_heads")
    layers = _first(model, config, f"{decoder}layers", f"num_{decoder}layers", "num_hidden_layers", "n_layer")
    groups = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "multi_query", False):
        groups = getattr(config, "num_kv_heads", 1) if getattr(config, "new_decoder_architecture", False) else 1
    head_dim = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or width // heads
    table = getattr(unwrap(input_embedding(model)), "weight", None)
    tables = _position_tables(model)
    paddings = (getattr(module, "padding_idx", None) for module in tables["position_embeddings"])
    return PromptSizes(
        token_dim=width if table is None else table.shape[-1],
        num_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        positions=_positions(config),
        positions_from=next((found for found in paddings if found is not None), None),
        positions_from_mask=any(map(_counts_over_mask, tables["embed_positions"])),
        is_encoder_decoder=encoder_decoder,
        is_causal=not encoder_decoder and _generates(model),
    )


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise TaskError(
            f"{type(model).__name__} has no config that tells its sizes: a prompt method needs a transformers model."
        )
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _first(model: nn.Module, config: Any, *names: str) -> int:
    found = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    if found is None:
        raise TaskError(f"The config of {type(model).__name__} has none of {', '.join(names)}.")
    return found


def _positions(config: Any) -> int | None:
    """Return how many positions a model has a table for; with computed positions there is no limit to keep to."""
    if getattr(config, "rope_theta", None) or getattr(config, "rope_parameters", None):
        return None
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return found if isinstance(found, int) else None


def _position_tables(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules that embed positions, by the usual ends of their names, in one walk over the model."""
    found: dict[str, list[nn.Module]] = {"position_embeddings": [], "embed_positions": []}
    seen = {model}
    waiting = [model]
    while waiting:  # torch's own walk makes a dotted name for every module, which takes several times as long
        for name, child in waiting.pop()._modules.items():
            if child is None or child in seen:
                continue
            seen.add(child)
            waiting.append(child)
            for end in found:
                if name.endswith(end):
                    found[end].append(unwrap(child))
    return found


def _counts_over_mask(table: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(table.forward).parameters


def _generates(model: nn.Module) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return can_generate is not None and bool(can_generate())
