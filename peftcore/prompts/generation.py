"""Generation: ``generate`` of transformers' models with virtual tokens.

Generation is given ids that stand for the virtual tokens, and a mask and a cache that fit them, so it counts positions,
sizes caches and repeats rows for beams as ever. What it returns has them no more.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftcore.exceptions import TaskError
from peftcore.prompts.arguments import widen, widen_ids
from peftcore.prompts.cache import cache_length, check_keeps_cache, mark, marked, new_cache, write_prefix
from peftcore.prompts.call import DECODER, MAIN, PromptedCall
from peftcore.prompts.columns import Columns
from peftcore.prompts.sizes import PromptSizes

#: What asks for assisted decoding, whose assistant knows nothing of virtual tokens.
_ASSISTANCE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


def named_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``generate`` by name, the inputs by the name that the model's forward has for them."""
    names = inspect.signature(model.generate).parameters if args else ()  # type: ignore[arg-type]
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs = arguments.pop("inputs", None)
    if inputs is not None:
        arguments[getattr(model, "main_input_name", "input_ids")] = inputs
    return arguments


class Generation:
    """One call of ``generate`` with virtual tokens.

    Args:
        model: The user's model.
        call: The virtual tokens.
        arguments: The call's arguments by name.
        sizes: The model's.

    Attributes:
        arguments: What to call ``generate`` with.

    Raises:
        TaskError: It asks for what can't be done with virtual tokens.
    """

    def __init__(self, model: nn.Module, call: PromptedCall, arguments: Mapping[str, Any], sizes: PromptSizes) -> None:
        self.model, self.call, self.sizes = model, call, sizes
        self.arguments = dict(arguments)
        #: What the columns of the sequences that are generated stand for; None if nothing in them is virtual.
        self.columns: Columns | None = None
        self._refuse()
        if sizes.is_encoder_decoder:
            self._prepare_encoder_decoder()
        else:
            self._prepare_decoder()
        self._lengthen()

    def _setting(self, name: str) -> Any:
        """Return what a parameter of the generation is, said in the call or in a generation config."""
        configs = (self.arguments.get("generation_config"), getattr(self.model, "generation_config", None))
        values = (self.arguments.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), None)

    def _refuse(self) -> None:
        for name in _ASSISTANCE:
            if self._setting(name) is not None:
                raise TaskError(
                    f"Virtual tokens don't go with assisted decoding ({name}): the assistant would guess without them. "
                    f"Leave {name} out, or disable the adapter."
                )
        if self.arguments.get("position_ids") is not None:
            raise TaskError(
                "generate() counts positions from the attention mask when there are virtual tokens: "
                "leave position_ids out."
            )

    # --------------------------------------------------------------------------------------- what goes in

    def _prepare_decoder(self) -> None:
        arguments = self.arguments
        if arguments.get("attention_mask") is None:
            arguments["attention_mask"] = self._mask()
        known = marked(arguments.get("past_key_values"))
        if known is not None and cache_length(arguments["past_key_values"]):
            self.columns = known
            self._go_on()
            return
        ids = arguments.get("input_ids")
        columns = widen(self.model, self.call, MAIN, arguments, self.sizes, self.call.key_values, prefix_in_ids=True)
        self.columns = columns if ids is not None else None
        self._token_types(columns)
        if self.call.key_values is not None:
            self._give_prefix(arguments["attention_mask"].shape[1])

    def _go_on(self) -> None:
        """Go on from a cache that holds the virtual tokens: only ids and mask have to have places for them."""
        assert self.columns is not None
        self.arguments["input_ids"] = widen_ids(
            self.arguments["input_ids"], self.columns, self.model, seen=self.columns.past, prefix_in_ids=True
        )
        self.arguments["attention_mask"] = self.columns.widen(self.arguments["attention_mask"])
        self._token_types(self.columns)

    def _token_types(self, columns: Columns) -> None:
        types = self.arguments.get("token_type_ids")
        if isinstance(types, Tensor):
            self.arguments["token_type_ids"] = columns.widen(types).masked_fill(
                columns.inserted(types.shape[1] + columns.slots, len(types), types.device), 0
            )

    def _mask(self) -> Tensor:
        """Return the mask that generation would make: of what is no padding, if that can be told."""
        ids: Any = self.arguments.get("input_ids")
        if ids is None:
            embeds: Any = self.arguments.get("inputs_embeds")
            return torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        padding, ends = self._setting("pad_token_id"), self._setting("eos_token_id")
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        told = padding is not None and padding not in ends
        return ids.ne(padding).long() if told and bool(ids.eq(padding).any()) else torch.ones_like(ids)

    def _prepare_encoder_decoder(self) -> None:
        arguments = self.arguments
        if MAIN in self.call.embeddings and arguments.get("encoder_outputs") is None:
            if arguments.get("attention_mask") is None:
                arguments["attention_mask"] = self._mask()
            widen(self.model, self.call, MAIN, arguments, self.sizes, None)
        if DECODER in self.call.embeddings:
            if arguments.get("decoder_input_ids") is None:
                arguments["decoder_input_ids"] = self._start()
            self.columns = widen(self.model, self.call, DECODER, arguments, self.sizes, None)
        if self.call.key_values is not None:
            self._give_prefix(0)
            if not self.call.key_values.used.all():
                raise TaskError(
                    "generate() of an encoder-decoder model takes one number of virtual keys and values for all rows."
                )

    def _start(self) -> Tensor:
        start = self._setting("decoder_start_token_id")
        start = self._setting("bos_token_id") if start is None else start
        device = next(self.model.parameters()).device
        return torch.full((self.call.rows, 1), start, dtype=torch.long, device=device)

    def _give_prefix(self, length: int) -> None:
        """Give generation a cache with the prefix in it, of the kind that it would make."""
        assert self.call.key_values is not None
        check_keeps_cache(self.model)
        times = max(self._setting("num_beams") or 1, self._setting("num_return_sequences") or 1)
        cache = self.arguments.get("past_key_values")
        if cache is None:
            kind = self._setting("cache_implementation")
            self.arguments.pop("cache_implementation", None)
            static = kind is not None and "static" in kind
            cache = new_cache(self.model, self.sizes, static_length=self._final_length(length) if static else None)
        write_prefix(cache, self.call.key_values.repeated(times), self.sizes, self.model)
        # Without a cache every step would go through all tokens again, and the prefix is in a cache anyway.
        self.arguments.update(past_key_values=cache, use_cache=True)

    def _final_length(self, length: int) -> int:
        new = self._setting("max_new_tokens")
        longest = self._setting("max_length")
        if new is not None:
            return length + new
        return (20 + length) if longest is None else longest + (0 if self.columns is None else self.columns.slots)

    def _lengthen(self) -> None:
        """Leave as much room for new tokens as there would be without the virtual ones."""
        slots = 0 if self.columns is None else self.columns.slots
        for longest, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            length = self._setting(longest)
            if slots and length and self._setting(new) is None:
                self.arguments[longest] = length + slots
        if slots and self.arguments.get("streamer") is not None:
            self.arguments["streamer"] = _Streamer(self.arguments["streamer"], self)

    # -------------------------------------------------------------------------------------- what comes out

    def without_virtual(self, sequences: Tensor) -> Tensor:
        """Return sequences of ids without those that stand for virtual tokens."""
        if self.columns is None:
            return sequences
        inserted = self.columns.inserted(sequences.shape[1], self.call.rows, sequences.device)
        inserted = inserted.repeat_interleave(len(sequences) // self.call.rows, 0)
        return sequences[~inserted].reshape(len(sequences), -1)

    def finish(self, result: Any) -> Any:
        """Return what generation has returned, without virtual tokens; its cache remembers that it holds them."""
        if isinstance(result, Tensor):
            return self.without_virtual(result)
        result["sequences"] = self.without_virtual(result["sequences"])
        columns = self.columns or self.call.columns
        if columns is not None and result.get("past_key_values") is not None:
            mark(result["past_key_values"], columns)
        return result


class _Streamer:
    """Passes on what a streamer is given, the first time without virtual tokens."""

    def __init__(self, streamer: Any, generation: Generation) -> None:
        self.streamer, self.generation, self.began = streamer, generation, False

    def put(self, value: Tensor) -> None:
        if not self.began and value.dim() == 2:
            value = self.generation.without_virtual(value)
        self.began = True
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()
