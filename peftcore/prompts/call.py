"""PromptedCall: the virtual tokens of one call on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftcore.exceptions import TaskError
from peftcore.prompts.columns import Columns
from peftcore.prompts.encoder import Batch, PromptEncoder

#: The two places for virtual embeddings: where the tokens go in, and the decoder of an encoder-decoder model.
Side = str
MAIN: Side = ""
DECODER: Side = "decoder_"


class Slots(NamedTuple):
    """Virtual tokens of a batch, whose rows may have different numbers of them.

    Attributes:
        values: ``[rows, slots, …]``.
        used: Which slots hold one, ``[rows, slots]``, bool; a row's last ones.
        all_used: Whether all are known to.
    """

    values: Tensor
    used: Tensor
    all_used: bool = False

    def repeated(self, times: int) -> Slots:
        """Return them with each row so many times."""
        if times == 1:
            return self
        return Slots(self.values.repeat_interleave(times, 0), self.used.repeat_interleave(times, 0), self.all_used)

    def for_rows(self, rows: int) -> Slots:
        """Return them for so many rows: each repeated, or, where all are the same, any number.

        Raises:
            TaskError: It can't be told which rows these are.
        """
        times, rest = divmod(rows, len(self.values))
        if not rest:
            return self.repeated(times)
        if not all(bool((tensor == tensor[:1]).all()) for tensor in (self.values, self.used)):
            raise TaskError(f"{rows} rows are generated of {len(self.values)}, and each has its own virtual tokens.")
        return Slots(self.values[:1].expand(rows, -1, -1), self.used[:1].expand(rows, -1), self.all_used)


@dataclass
class Window:
    """Where virtual embeddings stand in the sequence that one part of a model sees, the cache's places included.

    Attributes:
        columns: What the places stand for.
        tokens: How many tokens each row has.
        start: The first place of the forward pass that goes on now; None if none does.
    """

    columns: Columns
    tokens: int
    start: int | None = None

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Which places are virtual tokens, and from which slot; see :meth:`Columns.places`."""
        return self.columns.places(self.tokens)

    def begins(self, start: int, length: int) -> bool:
        """Whether all virtual embeddings stand in front of the other ones of a forward pass over these places."""
        layout = self.columns.layout
        return layout is not None and layout.in_front and start == self.columns.in_cache and length >= layout.slots


@dataclass
class PromptedCall:
    """The virtual tokens of one call.

    Attributes:
        rows: Rows of the batch.
        embeddings: Those that go among the input embeddings, by where.
        key_values: Those that go into the cache, or None.
        windows: Where the embeddings stand, once the call's arguments are known.
        columns: What the columns of the mask stand for, likewise; of an encoder-decoder model, the decoder's.
        cache: The cache that holds the prefix, once it is written.
        opens: Writes the prefix into an empty cache, for so many rows; for generation by a decoder beside an encoder.
        arguments: What the methods have declared and the caller has given.
    """

    rows: int
    embeddings: dict[Side, Slots]
    key_values: Slots | None
    windows: dict[Side, Window] = field(default_factory=dict)
    columns: Columns | None = None
    cache: Any = None
    opens: Callable[[Any, int], None] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def replaced(self, side: Side, embedded: Tensor) -> Tensor:
        """Return what an embedding has made of tokens, with the virtual ones among them.

        Args:
            side: Whose embedding it is.
            embedded: ``[rows, length, dim]``; rows may stand several times, one after the other.
        """
        window = self.windows.get(side)
        if window is None or window.start is None:
            return embedded
        start, window.start = window.start, None
        here = slice(start, start + embedded.shape[1])
        times = embedded.shape[0] // self.rows
        if window.begins(start, embedded.shape[1]):
            slots = self.embeddings[side].repeated(times).values.to(embedded.dtype)
            return torch.cat([slots, embedded[:, slots.shape[1] :]], 1)
        virtual, slot = (places[:, here] for places in window.places)
        if virtual.shape[1] == 0:
            return embedded
        slots = self.embeddings[side].values.to(embedded.dtype).repeat_interleave(times, 0)
        virtual, slot = (places.repeat_interleave(times, 0)[..., None] for places in (virtual, slot))
        own = slots.gather(1, slot.expand(-1, -1, slots.shape[-1]))
        length = virtual.shape[1]
        return torch.cat([torch.where(virtual, own, embedded[:, :length]), embedded[:, length:]], 1)


#: Which rows (None for all), and what makes their virtual tokens.
Assignment = tuple[Tensor | None, Sequence[PromptEncoder]]


def make_call(
    groups: Iterable[Assignment], rows: int, device: torch.device, arguments: Mapping[str, Any]
) -> PromptedCall:
    """Make the virtual tokens of a batch.

    Args:
        groups: The rows of each adapter, and its encoders.
        rows: Rows of the batch.
        device: Where the batch is.
        arguments: What methods have declared and the caller has given.
    """
    found: dict[str, list[tuple[Tensor | None, Tensor]]] = {}
    for index, encoders in groups:
        batch = Batch(rows if index is None else index.shape[0], _of_rows(arguments, index, rows))
        for place, values in _made(encoders, batch).items():
            found.setdefault(place, []).append((index, values.to(device)))
    slots = {place: _stacked(pieces, rows) for place, pieces in found.items()}
    key_values = slots.pop("key_values", None)
    return PromptedCall(rows, slots, key_values, arguments=arguments)


def _of_rows(arguments: Mapping[str, Any], index: Tensor | None, rows: int) -> Mapping[str, Any]:
    if index is None:
        return arguments

    def pick(value: Any) -> Any:
        by_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        return value[index.to(value.device)] if by_row else value

    return {name: pick(value) for name, value in arguments.items()}


def _made(encoders: Sequence[PromptEncoder], batch: Batch) -> dict[str, Tensor]:
    """Return what encoders make for some rows, one behind the other, by where it goes."""
    made: dict[str, list[Tensor]] = {}
    for encoder in encoders:
        embeddings, key_values = encoder.embeddings(batch), encoder.key_values(batch)
        if embeddings is not None:
            for side, part in _by_side(encoder, _by_row(embeddings, batch.rows)).items():
                made.setdefault(side, []).append(part)
        if key_values is not None:
            made.setdefault("key_values", []).append(_by_row(key_values, batch.rows))
    return {place: parts[0] if len(parts) == 1 else torch.cat(parts, 1) for place, parts in made.items()}


def _by_row(values: Tensor, rows: int) -> Tensor:
    return values.expand(rows, -1, -1) if values.dim() == 2 else values


def _by_side(encoder: PromptEncoder, embeddings: Tensor) -> dict[Side, Tensor]:
    """Share out virtual embeddings between the two parts of an encoder-decoder model."""
    if not encoder.sizes.is_encoder_decoder:
        return {MAIN: embeddings}
    config = encoder.config
    halves = embeddings.chunk(2, 1) if config.num_transformer_submodules == 2 else (embeddings, embeddings)
    wanted = {"encoder": (MAIN,), "decoder": (DECODER,), "both": (MAIN, DECODER)}[config.injected_into]
    return {side: half for side, half in zip((MAIN, DECODER), halves, strict=True) if side in wanted}


def _stacked(pieces: Sequence[tuple[Tensor | None, Tensor]], rows: int) -> Slots:
    """Put the rows of all groups together, shorter ones padded in front; rows of no group have no virtual token."""
    index, first = pieces[0]
    if index is None or (len(pieces) == 1 and len(index) == rows):
        ordered = first if index is None else first[index.argsort()]
        return Slots(ordered, first.new_ones(rows, first.shape[1], dtype=torch.bool), all_used=True)
    slots = max(values.shape[1] for _, values in pieces)
    values = first.new_zeros(rows, slots, first.shape[2])
    used = first.new_zeros(rows, slots, dtype=torch.bool)
    for index, own in pieces:
        assert index is not None, "only one group can be all rows"
        padded = nn.functional.pad(own.to(values.dtype), (0, 0, slots - own.shape[1], 0))
        values = values.index_copy(0, index, padded)
        used[index, slots - own.shape[1] :] = True
    return Slots(values, used)
