"""PromptedCall: the virtual tokens of one call on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """

    values: Tensor
    used: Tensor

    def repeated(self, times: int) -> Slots:
        """Return them with each row so many times."""
        return self if times == 1 else Slots(*(tensor.repeat_interleave(times, 0) for tensor in self))

    def for_rows(self, rows: int) -> Slots:
        """Return them for so many rows: each repeated, or, where all are the same, any number.

        Raises:
            TaskError: It can't be told which rows these are.
        """
        times, rest = divmod(rows, len(self.values))
        if not rest:
            return self.repeated(times)
        if not all(bool((tensor == tensor[:1]).all()) for tensor in self):
            raise TaskError(f"{rows} rows are generated of {len(self.values)}, and each has its own virtual tokens.")
        return Slots(*(tensor[:1].expand(rows, *tensor.shape[1:]) for tensor in self))


@dataclass
class Window:
    """Where virtual embeddings stand in the sequence that one part of a model sees, the cache's places included.

    Attributes:
        virtual: Which places, ``[rows, length]``, bool.
        slot: From which slot, ``[rows, length]``.
        start: The first place of the forward pass that goes on now; None if none does.
    """

    virtual: Tensor
    slot: Tensor
    start: int | None = None


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
        virtual = window.virtual[:, start : start + embedded.shape[1]]
        if virtual.shape[1] == 0:
            return embedded
        times = len(embedded) // self.rows
        slots = self.embeddings[side].values.to(embedded.dtype).repeat_interleave(times, 0)
        virtual = virtual.repeat_interleave(times, 0)[..., None]
        slot = window.slot[:, start : start + embedded.shape[1]].repeat_interleave(times, 0)[..., None]
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
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for index, encoders in groups:
        everyone = torch.arange(rows, device=device) if index is None else index
        batch = Batch(len(everyone), _of_rows(arguments, index, rows))
        for place, values in _made(encoders, batch).items():
            found.setdefault(place, []).append((everyone, values.to(device)))
    slots = {place: _stacked(pieces, rows) for place, pieces in found.items()}
    key_values = slots.pop("key_values", None)
    return PromptedCall(rows, slots, key_values, arguments=arguments)


def _of_rows(arguments: Mapping[str, Any], index: Tensor | None, rows: int) -> dict[str, Any]:
    def pick(value: Any) -> Any:
        by_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        return value if index is None or not by_row else value[index.to(value.device)]

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
    return {place: torch.cat(parts, 1) for place, parts in made.items()}


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


def _stacked(pieces: Sequence[tuple[Tensor, Tensor]], rows: int) -> Slots:
    """Put the rows of all groups together, shorter ones padded in front; rows of no group have no virtual token."""
    slots = max(values.shape[1] for _, values in pieces)
    first_rows, first = pieces[0]
    if len(pieces) == 1 and len(first_rows) == rows:
        order = first_rows.argsort()
        return Slots(first[order] if len(order) > 1 else first, first.new_ones(rows, slots, dtype=torch.bool))
    values = first.new_zeros(rows, slots, first.shape[2])
    used = first.new_zeros(rows, slots, dtype=torch.bool)
    for index, own in pieces:
        padded = nn.functional.pad(own.to(values.dtype), (0, 0, slots - own.shape[1], 0))
        values = values.index_copy(0, index, padded)
        used[index, slots - own.shape[1] :] = True
    return Slots(values, used)
