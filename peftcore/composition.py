"""Composition: how adapters act together on one frozen layer, defined once.

The active adapters form an ordered list.
The weight that acts is the frozen one, folded through the list in order: a delta, computed from the frozen weight, is
added; a transform is applied.
Forward, the merged weight and the mixed batch all follow this one definition.
What trains a copy of a whole layer is called instead of it, and stands there alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from peftcore.adapters.base import Adapter
from peftcore.adapters.changed_inputs import run_with_changed_input
from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.formed_deltas import run_with_formed_deltas
from peftcore.adapters.thin_products import run_with_thin_delta
from peftcore.base_layers.base import BaseLayer


def fold(base: BaseLayer, parts: Iterable[Adapter], *, in_call: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weight, canonical and in its dtype, and its bias, with adapters folded in, in their order.

    Args:
        base: The layer's view.
        parts: The adapters.
        in_call: Whether it is for one forward pass, in which training may leave parts of an adapter out.
    """
    weight, bias = base.read_weight(), base.read_bias()
    for part in parts:
        wide = torch.promote_types(weight.dtype, part.dtype)
        fold_part = part.fold_in_call if in_call else part.fold
        weight, bias = fold_part(weight.to(wide), bias)
    return weight.to(base.dtype), None if bias is None else bias.to(base.dtype)


def run_deltas(base: BaseLayer, deltas: Sequence[WeightDelta], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run a layer that is additive with deltas alone: the frozen layer once, and each delta on the input."""
    output: Tensor | None = None
    frozen: Tensor | None = None
    others: Sequence[WeightDelta] = deltas
    if len(args) == 1 and not kwargs:
        output, others = run_with_thin_delta(base, deltas[0], args[0]), deltas[1:]
        if output is None:
            output, others = run_with_formed_deltas(base, deltas, args[0]), ()
        if output is None:
            output, others = run_with_changed_input(base, deltas[0], args[0]), deltas[1:]
        if output is not None and not others:
            return output
    if output is None:
        output, others = base.forward(*args, **kwargs), deltas
        frozen = output
    dtype = output.dtype
    for delta in others:
        x = delta.cast(args[0])
        output = output + (delta.delta_forward(x) if frozen is None else delta.delta_beside(frozen, x))
    return output if output.dtype == dtype else output.to(dtype)


def run(
    base: BaseLayer, parts: Sequence[Adapter], args: tuple[Any, ...], kwargs: dict[str, Any], frozen: Any = None
) -> Any:
    """Run a layer with any adapters: each around those before it.

    Up to the last one that can act by a changed weight only, they are folded into one; what no weight can hold stands
    around that. All are folded where the layer is not additive.

    Args:
        base: The layer's view.
        parts: The adapters.
        args, kwargs: What the layer is called with.
        frozen: What the frozen layer has made of it already, for adapters that all keep inputs; None if it is to run.
    """
    if not parts:
        return base.forward(*args, **kwargs) if frozen is None else frozen
    replaced = any(part.replaces_layer for part in parts)
    if not base.additive and not replaced:
        return base.apply(fold(base, parts, in_call=True)[0], *args, **kwargs)
    folded, around = _split(parts)
    bottom = _Bottom(base, folded, frozen)
    below: Any = bottom
    for part in around:
        below = functools.partial(part, below)
    output = below(*args, **kwargs)
    return output if bottom.dtype is None else output.to(bottom.dtype)


def _split(parts: Sequence[Adapter]) -> tuple[list[Adapter], list[Adapter]]:
    """Return which adapters are folded into the weight for a call, and which stand around the layer then."""
    last = 0
    for number, part in enumerate(parts):
        if part.acts_by_weight(parts[:number]):
            last = number + 1
    folded = [part for part in parts[:last] if part.mergeable]
    return folded, [part for part in parts[:last] if not part.mergeable] + list(parts[last:])


class _Bottom:
    """The frozen layer at the bottom of a chain, perhaps with adapters folded in; it notes the dtype of its output."""

    dtype: torch.dtype | None = None

    def __init__(self, base: BaseLayer, folded: Sequence[Adapter], frozen: Any = None) -> None:
        self.base = base
        self.folded = folded
        self.frozen = frozen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = [x.to(self.base.dtype) if _is_widened(x, self.base.dtype) else x for x in args]
        output = self._run(*inputs, **kwargs) if self.frozen is None else self.frozen
        self.dtype = output.dtype if isinstance(output, Tensor) else None
        return output

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if not self.folded:
            return self.base.forward(*args, **kwargs)
        weight, bias = fold(self.base, self.folded, in_call=True)
        output = self.base.apply(weight, *args, **kwargs)
        return output if bias is None else self.base.add_bias(output, bias.to(output.dtype))


def _is_widened(x: Any, dtype: torch.dtype) -> bool:
    """Whether an adapter has brought an input to a finer dtype than the frozen layer takes."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype or torch.is_autocast_enabled():
        return False
    return torch.promote_types(x.dtype, dtype) == x.dtype
