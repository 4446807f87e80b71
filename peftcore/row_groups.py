"""Rows of one batch with different adapters, on one layer.

What acts on a row is what acts when its adapter is active alone.
The frozen layer runs once for all rows wherever no adapter needs it otherwise; then deltas are added to their rows, and
inputs and outputs scaled by a vector for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.scale import OutputScale
from peftcore.base_layers.base import BaseLayer
from peftcore.batches import check_separable, first_tensor, join_rows, repeat_row, take_rows
from peftcore.call_state import BASE, CallState, Group, Places, Rows
from peftcore.composition import run, run_deltas
from peftcore.stacking import Asked, PlacesOf, Stacks


def run_rows(
    base: BaseLayer,
    parts_of: Callable[[str], Sequence[Adapter]],
    places_of_parts: Callable[[Sequence[str]], Sequence[tuple[Mapping[str, Any], str]]],
    state: CallState,
    rows: Rows,
    stacks: Stacks,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a layer for rows with different adapters.

    Args:
        base: The layer's view.
        parts_of: Gives an adapter's parts on the layer, from its name.
        places_of_parts: Gives everywhere that ``parts_of`` looks, from names.
        state: What holds for the call on the model.
        rows: Which adapter each row asks for.
        stacks: What the layer keeps stacked.
        args, kwargs: What the layer is called with.

    Raises:
        MixedBatchError: The layer sees a number of rows that the batch does not explain, or has a cache that rows of
            several groups can't share.
    """
    x = first_tensor(args, kwargs)
    if rows.stands_for_all(x, base.batch_dim):
        if not any(parts_of(name) for name in rows.different):
            return base.forward(*args, **kwargs)
        args, kwargs = repeat_row((args, kwargs), rows.size, base.batch_dim)
        x = first_tensor(args, kwargs)
    size = x.shape[base.batch_dim]
    device = x.device

    def places_of(names: tuple[str, ...]) -> Places:
        return rows.places(size, device, names)

    if base.additive and stacks.are_all(rows.different, x, places_of):
        matrix = base.plain_matrix()
        alone = len(args) == 1 and not kwargs
        output = linear(x, *matrix) if matrix is not None and alone else base.forward(*args, **kwargs)
        return stacks.add_kept(output, x, partial(rows.groups, size, device), places_of, owned=matrix is not None)
    groups = rows.groups(size, device)
    acting = [(group, () if group.name == BASE else parts_of(group.name)) for group in groups]
    if groups[0].rows is None:
        return _run_one(base, *acting[0], state, args, kwargs)
    together = _Together.of(acting) if base.additive and base.batch_dim == 0 else None
    if together is None:
        return _run_apart(base, acting, state, size, args, kwargs)
    asked = Asked(rows.different, lambda: places_of_parts(rows.different))
    return together.run(base, places_of, size, stacks, asked, args, kwargs)


#: What acts on the rows of one group, in order.
_Acting = tuple[Group, Sequence[Adapter]]


def _run_one(
    base: BaseLayer,
    group: Group,
    parts: Sequence[Adapter],
    state: CallState,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a layer whose rows all ask for one adapter."""
    deltas = [part for part in parts if isinstance(part, WeightDelta)]
    if base.additive and len(deltas) == len(parts):
        return run_deltas(base, deltas, args, kwargs) if deltas else base.forward(*args, **kwargs)
    # What the layer holds inside (an attention's projections) is asked for this group's adapter alone.
    with state.assigned(Rows.all_for(group.name)):
        return run(base, parts, args, kwargs)


class _Together(NamedTuple):
    """What acts where the frozen layer runs once for all rows: deltas on their rows, and vectors on theirs."""

    deltas: list[tuple[Group, WeightDelta]]
    scales: list[tuple[Group, OutputScale]]

    @classmethod
    def of(cls, acting: Sequence[_Acting]) -> _Together | None:
        """Return it, or None if something acts in another way."""
        together = cls([], [])
        for group, parts in acting:
            for part in parts:
                if isinstance(part, WeightDelta):
                    together.deltas.append((group, part))
                elif isinstance(part, OutputScale) and part.is_by_vectors() and len(parts) == 1:
                    together.scales.append((group, part))
                else:
                    return None
        return together

    def run(
        self,
        base: BaseLayer,
        places_of: PlacesOf,
        size: int,
        stacks: Stacks,
        asked: Asked,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run an additive layer on ``size`` rows."""
        if self.scales:
            places = places_of(tuple([group.name for group, _ in self.scales]))
            output = _run_scaled(base, [part for _, part in self.scales], places, size, args, kwargs)
        else:
            output = base.forward(*args, **kwargs)
        if not self.deltas:
            return output
        owned = base.plain_matrix() is not None
        return stacks.add(output, args[0], self.deltas, places_of, owned=owned, asked=None if self.scales else asked)


def _run_scaled(
    base: BaseLayer,
    parts: Sequence[OutputScale],
    places: Places,
    size: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Run a layer whose rows are scaled by a vector each, before or after, and shifted."""

    def changed(x: Tensor, vectors: Sequence[Tensor | None], neutral: float) -> Tensor:
        given = [vector for vector in vectors if vector is not None]
        if not given:
            return x
        table = torch.stack([torch.full_like(given[0], neutral) if vector is None else vector for vector in vectors])
        own = places.spread(table, size, neutral)
        change = torch.mul if neutral else torch.add
        return base.with_features_last(
            lambda features: change(features, own.reshape(size, *[1] * (features.dim() - 2), -1)), x
        )

    x, *others = args
    inner = changed(x, [part.input_factors() for part in parts], 1.0).to(x.dtype)
    output: Tensor = base.forward(inner, *others, **kwargs)
    outer = changed(output, [part.output_factors() for part in parts], 1.0)
    return changed(outer, [part.shift() for part in parts], 0.0).to(output.dtype)


# ------------------------------------------------------------------------------------------------ group by group


def _run_apart(
    base: BaseLayer,
    acting: Sequence[_Acting],
    state: CallState,
    size: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a layer group by group, and join the rows; the frozen layer once for all if no adapter changes its inputs."""
    frozen = None
    if all(part.keeps_inputs for _, parts in acting for part in parts):
        frozen = base.forward(*args, **kwargs)
    else:
        check_separable(args, kwargs)
    outputs = []
    for group, parts in acting:
        given = take_rows((args, kwargs, frozen), group.index, size, base.batch_dim)
        with state.assigned(Rows.all_for(group.name)):
            outputs.append(run(base, parts, *given))
    indices = [group.index for group, _ in acting if group.index is not None]
    return join_rows(outputs, torch.cat(indices).argsort(), [len(index) for index in indices], base.batch_dim)
