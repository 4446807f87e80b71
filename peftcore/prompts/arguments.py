"""Arguments: what a model is called with, rewritten for virtual tokens.

What the arguments are called is all that is known of a model: ids, masks, positions and labels of transformers' models.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from peftcore.exceptions import TaskError
from peftcore.prompts.cache import cache_length, check_keeps_cache, mark, marked, new_cache, write_prefix
from peftcore.prompts.call import DECODER, MAIN, PromptedCall, Side, Slots, Window
from peftcore.prompts.columns import Columns
from peftcore.prompts.layout import Layout, padding_on_the_left, positions_of
from peftcore.prompts.sizes import PromptSizes

#: Arguments whose first dimension is the batch's rows, the likeliest first.
_BATCHES = ("input_ids", "inputs_embeds", "inputs", "decoder_input_ids", "input_features", "pixel_values")
#: Arguments that run along the tokens, and what stands there for virtual ones.
_ALONG = {"token_type_ids": 0, "mm_token_type_ids": 0, "bbox": 0}
#: Arguments that name places among the tokens.
_PLACES = ("start_positions", "end_positions")
#: What is left out of a loss.
_IGNORED = -100


def bound(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by their names in the model's forward."""
    return {**dict(zip(_parameters_of(model), args, strict=False)), **kwargs} if args else dict(kwargs)


def takes(module: nn.Module, name: str) -> bool:
    """Whether a module's forward has a parameter of this name."""
    return name in _parameters_of(module)


def _parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's forward's parameters, in order."""
    function = getattr(module.forward, "__func__", None)
    return _names(module.forward) if function is None else _names(function)[1:]


@functools.lru_cache
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    # Every call asks for these, and a signature takes as long to find out as a small layer to run.
    return tuple(inspect.signature(function).parameters)


def rows_of(arguments: Mapping[str, Any]) -> tuple[int, torch.device]:
    """Return how many rows a call has, and where they are.

    Raises:
        TaskError: No tensor says so.
    """
    values = chain(map(arguments.get, _BATCHES), arguments.values())
    first = next((value for value in values if isinstance(value, Tensor) and value.dim()), None)
    if first is None:
        raise TaskError("A prompt method has to know the rows of the batch, and no tensor says them: pass input_ids.")
    return first.shape[0], first.device


def rewritten(model: nn.Module, call: PromptedCall, given: Mapping[str, Any], sizes: PromptSizes) -> dict[str, Any]:
    """Return the arguments of a call with virtual tokens in them; the given ones stay as they are.

    Args:
        model: The user's model.
        call: The virtual tokens; learns where they stand.
        given: The arguments by name.
        sizes: The model's.

    Raises:
        TaskError: The model, or this call, has no place for them.
    """
    arguments = dict(given)
    if MAIN in call.embeddings and arguments.get("encoder_outputs") is not None:
        widen_mask_of_encoded(call, arguments)
    known = known_columns(arguments)
    if known is not None:
        return _continued(model, arguments, known)
    in_decoder = sizes.is_encoder_decoder
    if in_decoder and (DECODER in call.embeddings or not all_used(call.key_values)):
        _give_decoder_tokens(model, arguments)
    if MAIN in call.embeddings and arguments.get("encoder_outputs") is None:
        columns = widen(model, call, MAIN, arguments, sizes, None if in_decoder else call.key_values)
        _widen_what_runs_along(arguments, columns, labels=not in_decoder)
    elif call.key_values is not None and not in_decoder:
        widen(model, call, MAIN, arguments, sizes, call.key_values)
    if in_decoder and (DECODER in call.embeddings or call.key_values is not None):
        columns = widen(model, call, DECODER, arguments, sizes, call.key_values)
        if columns.layout is not None and arguments.get("labels") is not None:
            arguments["labels"] = columns.layout.fill(_IGNORED, arguments["labels"])
    if call.key_values is not None:
        give_prefix(model, call, arguments, sizes)
    return arguments


def known_columns(arguments: Mapping[str, Any]) -> Columns | None:
    """Return what the columns of a cache stand for that a call goes on from; None if it holds no virtual token."""
    cache = arguments.get("past_key_values")
    return marked(cache) if cache_length(cache) else None


def remember(output: Any, call: PromptedCall) -> None:
    """Let the cache in a model's output remember what virtual tokens it holds."""
    cache = getattr(output, "past_key_values", None)
    if call.columns is not None and cache is not None and marked(cache) is None:
        mark(cache, call.columns)


def _continued(model: nn.Module, arguments: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Go on from a cache that holds the virtual tokens: only masks and positions have to count them."""
    side = DECODER if arguments.get("decoder_input_ids") is not None else MAIN
    mask, positions = arguments.get(f"{side}attention_mask"), arguments.get(f"{side}position_ids")
    new = _tokens(arguments, side).shape[1]
    length = cache_length(arguments["past_key_values"]) + new
    if positions is not None:
        arguments[f"{side}position_ids"] = positions + columns.used()
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == length - columns.slots:
        mask = arguments[f"{side}attention_mask"] = columns.widen(mask)
        if positions is None and takes(model, f"{side}position_ids"):
            arguments[f"{side}position_ids"] = positions_of(mask)[:, -new:]
    return arguments


def widen_mask_of_encoded(call: PromptedCall, arguments: dict[str, Any]) -> None:
    """Widen the mask of what an encoder has made with virtual tokens, where it is given with the tokens' own mask."""
    mask, slots = arguments.get("attention_mask"), call.embeddings[MAIN]
    encoded = arguments["encoder_outputs"][0]
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] + slots.used.shape[1] == encoded.shape[1]:
        layout = Layout(slots.used, padding_on_the_left(mask), empty_at_end=True, all_used=slots.all_used)
        arguments["attention_mask"] = layout.widen_mask(mask)


def all_used(prefix: Slots | None) -> bool:
    """Whether all rows have as long a prefix."""
    return prefix is None or prefix.all_used or bool(prefix.used.all())


# ------------------------------------------------------------------------------------------------ one side


def widen(
    model: nn.Module,
    call: PromptedCall,
    side: Side,
    arguments: dict[str, Any],
    sizes: PromptSizes,
    prefix: Slots | None,
    *,
    prefix_in_ids: bool = False,
) -> Columns:
    """Make room for virtual tokens among those of one side of a model, in place.

    Args:
        model: The user's model.
        call: The virtual tokens; learns where they stand.
        side: Where the tokens go in.
        arguments: The call's arguments by name.
        sizes: The model's.
        prefix: What is going to be in the cache in front of the tokens.
        prefix_in_ids: Whether ids stand for the prefix too, as generation wants them for whatever a cache holds.

    Returns:
        What the columns of the side's mask stand for.

    Raises:
        TaskError: There are no tokens that embeddings could stand among, or too many.
    """
    slots = call.embeddings.get(side)
    ids, tokens = arguments.get(f"{side}input_ids"), _tokens(arguments, side)
    if slots is not None and tokens is None:
        raise TaskError(
            f"Virtual embeddings stand among embedded tokens, and this call of {type(model).__name__} has neither "
            f"{side}input_ids nor {side}inputs_embeds. A prefix of keys and values needs none."
        )
    # Keys and values that a user has computed before; of what generation has ids for, the cache holds the first.
    past = cache_length(arguments.get("past_key_values")) if side or not sizes.is_encoder_decoder else 0
    seen = past if prefix_in_ids else 0
    mask = arguments.get(f"{side}attention_mask")
    flat = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
    offsets = None if flat is None or flat.shape[1] <= past else padding_on_the_left(flat[:, past:])
    layout, causal = None, bool(side) or sizes.is_causal
    if slots is not None:
        layout = Layout(slots.used, offsets, empty_at_end=not causal, all_used=slots.all_used)
    all_used = all(part.all_used for part in (slots, prefix) if part is not None)
    columns = Columns(past, None if prefix is None else prefix.used, layout, all_used=all_used)
    if side or not sizes.is_encoder_decoder:
        call.columns = columns
    length = 0 if tokens is None else tokens.shape[1] - seen
    _check_length(length, past + columns.slots, sizes)
    embeds = arguments.get(f"{side}inputs_embeds")
    if ids is not None:
        arguments[f"{side}input_ids"] = widen_ids(ids, columns, model, seen=seen, prefix_in_ids=prefix_in_ids)
    if embeds is not None:
        values = None if slots is None else slots.values
        arguments[f"{side}inputs_embeds"] = widen_embeds(
            embeds, columns, values, seen=seen, prefix_in_ids=prefix_in_ids
        )
    elif layout is not None:
        call.windows[side] = Window(columns, length)
    if flat is None and mask is None and not columns.is_full():
        if tokens is None:
            raise TaskError(f"Rows with different prefixes need {side}input_ids, or a mask, in {type(model).__name__}.")
        flat = tokens.new_ones(tokens.shape[0], past + length, dtype=torch.long)
    if flat is not None:
        arguments[f"{side}attention_mask"] = columns.widen(flat)
    elif isinstance(mask, Tensor):
        arguments[f"{side}attention_mask"] = columns.widen_square(mask, causal=causal)
    if not prefix_in_ids:
        _widen_positions(model, side, arguments, columns, sizes, flat is not None)
    return columns


def _tokens(arguments: Mapping[str, Any], side: Side) -> Any:
    ids = arguments.get(f"{side}input_ids")
    return arguments.get(f"{side}inputs_embeds") if ids is None else ids


def widen_ids(ids: Tensor, columns: Columns, model: nn.Module, *, seen: int, prefix_in_ids: bool) -> Tensor:
    """Return ids with others for virtual tokens, whose embeddings are replaced: the row's first one, or padding.

    Args:
        ids: ``[rows, seen + length]``.
        columns: Where virtual tokens stand.
        model: Knows its padding.
        seen: How many of the ids stand for what the cache held before.
        prefix_in_ids: See :func:`widen`.
    """
    layout, prefix = columns.layout, columns.prefix if prefix_in_ids else None
    if layout is None and prefix is None:
        return ids
    own = ids[:, seen:] if seen else ids
    first = own[:, :1] if layout is None else layout.first(own)
    padding = None if columns.all_used else _padding_id(model)

    def standing_for(used: Tensor) -> Tensor:
        return first.expand(used.shape) if padding is None else torch.where(used, first, padding)

    parts = [own if layout is None else layout.insert(standing_for(layout.used), own)]
    if prefix is not None:
        parts.insert(0, standing_for(prefix))
    return torch.cat([ids[:, :seen], *parts], 1) if seen or prefix is not None else parts[0]


def widen_embeds(embeds: Tensor, columns: Columns, values: Tensor | None, *, seen: int, prefix_in_ids: bool) -> Tensor:
    """Return embeddings with the virtual ones among them, and zeros for what is in the cache.

    Args:
        embeds: ``[rows, seen + length, dim]``.
        columns: Where virtual tokens stand.
        values: Their embeddings, ``[rows, slots, dim]``; None for zeros.
        seen, prefix_in_ids: See :func:`widen_ids`.
    """
    own, layout = embeds[:, seen:], columns.layout
    parts = [embeds[:, :seen]]
    if prefix_in_ids and columns.prefix is not None:
        parts.append(embeds.new_zeros(len(embeds), columns.prefix.shape[1], embeds.shape[2]))
    if layout is None:
        parts.append(own)
    else:
        parts.append(layout.fill(0, own) if values is None else layout.insert(values, own))
    return torch.cat(parts, 1)


def _widen_positions(
    model: nn.Module, side: Side, arguments: dict[str, Any], columns: Columns, sizes: PromptSizes, masked: bool
) -> None:
    """Count the virtual tokens in the positions; where a mask hides something, no model does it by itself."""
    name = f"{side}position_ids"
    positions = arguments.get(name)
    if isinstance(positions, Tensor):
        if positions.dim() != 2:
            raise TaskError(
                f"Virtual tokens need {name} of two dimensions, [rows, length], got {list(positions.shape)}."
            )
        if columns.prefix is not None:
            positions = positions + columns.prefix.sum(1, keepdim=True)
        arguments[name] = positions if columns.layout is None else columns.layout.widen_positions(positions)
    elif not takes(model, name) or sizes.positions_from_mask:
        if sizes.positions is not None and not sizes.positions_from_mask and columns.shifts_rows():
            raise TaskError(
                f"{type(model).__name__} counts positions by itself and takes no {name}, so all rows of its "
                f"{'decoder' if side else 'batch'} need as many virtual tokens."
            )
    elif masked and sizes.positions_from is None:
        arguments[name] = columns.positions(arguments[f"{side}attention_mask"])
    elif columns.prefix is not None and not columns.is_full():
        arguments[name] = _positions_from_ids(arguments.get(f"{side}input_ids"), columns, sizes)


def _positions_from_ids(ids: Tensor | None, columns: Columns, sizes: PromptSizes) -> Tensor:
    """Count positions as RoBERTa does, over ids that are no padding, behind as much of the prefix as a row uses."""
    if ids is None or sizes.positions_from is None:
        raise TaskError("Rows with different prefixes need input_ids in a model that counts its positions over them.")
    shown = ids.ne(sizes.positions_from).long()
    before = columns.prefix.sum(1, keepdim=True) if columns.prefix is not None else 0
    return (shown.cumsum(1) + before) * shown + sizes.positions_from


def _check_length(length: int, more: int, sizes: PromptSizes) -> None:
    if sizes.positions is not None and length + more > sizes.positions:
        raise TaskError(
            f"{length} tokens and {more} virtual or cached ones are more than the model's {sizes.positions} positions. "
            "Shorten the input, or use fewer virtual tokens."
        )


def _padding_id(model: nn.Module) -> int | None:
    found = getattr(getattr(model, "config", None), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else None


# ------------------------------------------------------------------------------------------- what goes along


def _give_decoder_tokens(model: nn.Module, arguments: dict[str, Any]) -> None:
    """Give a decoder the tokens that it would make of the labels, before these are widened."""
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is not None and _tokens(arguments, DECODER) is None and arguments.get("labels") is not None:
        arguments["decoder_input_ids"] = shifted(arguments["labels"])


def _widen_what_runs_along(arguments: dict[str, Any], columns: Columns, *, labels: bool) -> None:
    layout = columns.layout
    if layout is None:
        return
    length = _tokens(arguments, MAIN).shape[1] - layout.slots
    wanted = arguments.get("labels")
    # Labels of whole rows have another shape, or, where a row has several, are floating.
    if labels and isinstance(wanted, Tensor) and wanted.shape[1:] == (length,) and not wanted.is_floating_point():
        arguments["labels"] = layout.fill(_IGNORED, wanted)
    for name in _PLACES:
        if isinstance(arguments.get(name), Tensor):
            arguments[name] = arguments[name] + layout.used.sum(1).reshape(-1, *[1] * (arguments[name].dim() - 1))
    for name, value in _ALONG.items():
        if isinstance(arguments.get(name), Tensor):
            arguments[name] = layout.fill(value, arguments[name])


def give_prefix(model: nn.Module, call: PromptedCall, arguments: dict[str, Any], sizes: PromptSizes) -> None:
    """Write the prefix into the cache that a call brings, or into a new one."""
    assert call.key_values is not None
    check_keeps_cache(model)
    cache = arguments.get("past_key_values")
    call.cache = new_cache(model, sizes) if cache is None else cache
    write_prefix(call.cache, call.key_values, sizes, model)
    if takes(model, "past_key_values"):
        arguments["past_key_values"] = call.cache
