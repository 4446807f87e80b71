"""Generation: ``generate`` of transformers' models with virtual tokens.

Generation is given ids that stand for the virtual tokens, and a mask and a cache that fit them, so it counts positions,
sizes caches and repeats rows for beams as ever. What it returns has them no more.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from peftcore.exceptions import TaskError
from peftcore.prompts.arguments import all_used, known_columns, widen, widen_embeds, widen_ids, widen_mask_of_encoded
from peftcore.prompts.cache import check_keeps_cache, mark, new_cache, write_prefix
from peftcore.prompts.call import DECODER, MAIN, PromptedCall, Slots
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
        #: How much longer the virtual tokens make what goes in.
        self.slots = 0
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
        if self._setting("prefill_chunk_size") is not None:
            _need_transformers_5("prefill_chunk_size with virtual tokens")
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
        known = known_columns(arguments)
        if known is not None:
            self._go_on(known)
            return
        columns = widen(self.model, self.call, MAIN, arguments, self.sizes, self.call.key_values, prefix_in_ids=True)
        self.columns = columns if arguments.get("input_ids") is not None else None
        self.slots = columns.slots
        self._token_types(columns)
        if self.call.key_values is not None:
            self._give_prefix(self.call.key_values, arguments["attention_mask"].shape[1], self.slots)

    def _go_on(self, columns: Columns) -> None:
        """Go on from a cache that holds the virtual tokens: only ids and mask have to have places for them."""
        arguments = self.arguments
        ids, embeds, mask = arguments.get("input_ids"), arguments.get("inputs_embeds"), arguments["attention_mask"]
        seen = columns.past
        if ids is not None and ids.shape[1] == mask.shape[1]:  # else they are only those behind the cache
            arguments["input_ids"] = widen_ids(ids, columns, self.model, seen=seen, prefix_in_ids=True)
            self.columns, self.slots = columns, columns.slots
        if embeds is not None:
            arguments["inputs_embeds"] = widen_embeds(embeds, columns, None, seen=seen, prefix_in_ids=True)
            self.slots = columns.slots
        arguments["attention_mask"] = columns.widen(mask)
        self._token_types(columns)
        self.call.columns = columns

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
        call, prefix = self.call, self.call.key_values
        if MAIN in call.embeddings:
            self._prepare_encoder()
        if known_columns(self.arguments) is not None:
            return
        in_ids = DECODER in call.embeddings
        if in_ids or not all_used(prefix):
            self._give_decoder_tokens()
        if not in_ids and prefix is None:
            return
        columns = widen(self.model, call, DECODER, self.arguments, self.sizes, prefix)
        if columns.layout is not None:
            self.columns, self.slots = replace(columns, prefix=None), columns.layout.slots
        if prefix is not None:
            ids, more = self.arguments.get("decoder_input_ids"), columns.slots
            self._give_prefix(prefix, more + 1 + (0 if ids is None else ids.shape[1]), more)

    def _prepare_encoder(self) -> None:
        arguments = self.arguments
        if arguments.get("encoder_outputs") is not None:
            widen_mask_of_encoded(self.call, arguments)
            return
        if arguments.get("attention_mask") is None:
            arguments["attention_mask"] = self._mask()
        widen(self.model, self.call, MAIN, arguments, self.sizes, None)

    def _give_decoder_tokens(self) -> None:
        """Give generation the decoder's first token, which it would put in front of all others."""
        ids, mask = (self.arguments.get(f"decoder_{name}") for name in ("input_ids", "attention_mask"))
        token = self._setting("decoder_start_token_id")
        token = self._setting("bos_token_id") if token is None else token
        device = next(self.model.parameters()).device
        start = torch.as_tensor(token, dtype=torch.long, device=device).reshape(-1, 1).expand(self.call.rows, 1)
        if ids is None:
            self.arguments["decoder_input_ids"] = start
        elif bool((ids[:, :1] != start).all()):
            self.arguments["decoder_input_ids"] = torch.cat([start, ids], 1)
            if mask is not None:
                self.arguments["decoder_attention_mask"] = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)

    def _give_prefix(self, prefix: Slots, length: int, more: int) -> None:
        """Give generation a cache with the prefix in it, of the kind that it would make.

        Where a decoder beside an encoder begins, and with how many rows, generation decides: it makes the cache then.

        Args:
            prefix: What to write into it.
            length, more: See :meth:`_final_length`.
        """
        check_keeps_cache(self.model)
        # Without a cache every step would go through all tokens again, and the prefix is in a cache anyway.
        self.arguments["use_cache"] = True
        cache = self.arguments.get("past_key_values")
        if cache is None:
            kind = self._setting("cache_implementation")
            self.arguments.pop("cache_implementation", None)
            static = kind is not None and "static" in kind
            if self.sizes.is_encoder_decoder and not static:
                self.call.opens = lambda cache, rows: write_prefix(cache, prefix.for_rows(rows), self.sizes, self.model)
                return
            if self.sizes.is_encoder_decoder:
                _need_transformers_5("a static cache with a prefix beside an encoder")
            cache = new_cache(
                self.model, self.sizes, static_length=self._final_length(length, more) if static else None
            )
        times = max(self._setting("num_beams") or 1, self._setting("num_return_sequences") or 1)
        write_prefix(cache, prefix.repeated(times), self.sizes, self.model)
        self.arguments["past_key_values"] = cache

    def _final_length(self, length: int, more: int) -> int:
        """Return how long the sequence becomes that is so long now, more than the user sees of it."""
        new, longest = self._setting("max_new_tokens"), self._setting("max_length")
        if new is not None:
            return length + new
        return length + 20 if longest is None else longest + more

    def _lengthen(self) -> None:
        """Leave as much room for new tokens as there would be without the virtual ones."""
        for longest, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            length = self._setting(longest)
            if self.slots and length and self._setting(new) is None:
                self.arguments[longest] = length + self.slots
        if self.columns is not None and self.arguments.get("streamer") is not None:
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
        if self.call.columns is not None and result.get("past_key_values") is not None:
            mark(result["past_key_values"], self.call.columns)
        return result


def _need_transformers_5(what: str) -> None:
    """Refuse what older versions do out of reach: they call the model without its hooks, or need other ids.

    Raises:
        TaskError: The version is older.
    """
    import transformers
    from packaging.version import Version  # takes twice as long to import as all of the core

    if Version(transformers.__version__) < Version("5"):
        raise TaskError(f"generate() needs transformers 5 for {what}; {transformers.__version__} is installed.")


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
