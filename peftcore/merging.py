"""Merging: adapters folded into one frozen weight, and taken out of it again.

Deltas that can be computed again are added and subtracted in place, so merging costs no memory.
For everything else the frozen weight is kept while something is merged, and put back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.base_layers.base import BaseLayer, innermost
from peftcore.exceptions import MergeError, NotMergeableError


def fold(base: BaseLayer, parts: Iterable[Adapter]) -> tuple[Tensor, Tensor | None]:
    """Return a layer's weight, canonical and in its dtype, and its bias, with adapters folded in, in their order."""
    weight, bias = base.weight(), base.bias
    for part in parts:
        weight, bias = part.fold(weight, bias)
    return weight.to(base.dtype), bias


def check_mergeable(parts: Iterable[Adapter]) -> None:
    """Check that a weight can hold the effect of adapters.

    Raises:
        NotMergeableError: It can't hold one's.
    """
    for part in parts:
        if not part.mergeable:
            raise NotMergeableError(
                f"{type(part).__name__} can't be merged into a weight: {part.unmergeable_because}. "
                "Keep the adapter in the model instead."
            )


class MergedWeight:
    """The weight of one frozen layer while adapters are merged into it.

    Args:
        base: The layer's view.
    """

    def __init__(self, base: BaseLayer) -> None:
        self.base = base
        #: The frozen weight and bias, kept while something is merged that can't be subtracted again.
        self._original: tuple[Tensor, Tensor | None] | None = None
        #: The parameter that another module stores too, kept while this layer has one of its own.
        self._shared: nn.Parameter | None = None

    @torch.no_grad()
    def merge(self, before: Sequence[Adapter], parts: Sequence[Adapter], safe_merge: bool) -> None:
        """Fold adapters into the weight.

        Args:
            before: What is merged already, in order.
            parts: What comes to it, in order.
            safe_merge: Refuse a weight that would not be finite.

        Raises:
            MergeError: The weight would not be finite, or the storage can't hold it. The weight is as before.
        """
        if self._original is None and _subtractable([*before, *parts]):
            delta = _sum_of_deltas(parts)
            if safe_merge:
                self._check_finite(self.base.weight() + delta)
            self.base.add_(delta)
            return
        # Deltas are computed from the frozen weight, so it has to be in place while everything is folded anew.
        self._restore_frozen(before)
        try:
            self._write_folded([*before, *parts], safe_merge)
        except Exception:
            if before:
                self._write_folded(before, safe_merge=False)
            raise

    @torch.no_grad()
    def unmerge(self, merged: Sequence[Adapter]) -> None:
        """Take everything that is merged out of the weight."""
        self._restore_frozen(merged)
        if self._shared is not None:
            self._put(self._shared)
            self._shared = None

    def separate(self) -> None:
        """Give the layer a weight of its own, for one that another module stores too; unmerging gives it up again."""
        shared = stored_weight(self.base)
        if shared is not None and self._shared is None:
            self._shared = shared
            self._put(nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))

    def _write_folded(self, parts: Sequence[Adapter], safe_merge: bool) -> None:
        weight, bias = fold(self.base, parts)
        if safe_merge:
            self._check_finite(weight)
        original = self.base.weight().clone(), None if self.base.bias is None else self.base.bias.clone()
        self._write(weight, bias)
        self._original = original

    def _restore_frozen(self, merged: Sequence[Adapter]) -> None:
        if self._original is not None:
            self._write(*self._original)
            self._original = None
        elif merged:
            self.base.add_(-_sum_of_deltas(merged))

    def _write(self, weight: Tensor, bias: Tensor | None) -> None:
        self.base.replace_(weight)
        if bias is not self.base.bias:
            self.base.set_bias_(bias)

    def _put(self, weight: nn.Parameter) -> None:
        holder, _ = innermost(self.base.layer, self.base.weight_name)
        holder._parameters[self.base.weight_name] = weight

    def _check_finite(self, weight: Tensor) -> None:
        if not weight.isfinite().all():
            raise MergeError(
                f"The merged weight of a {type(self.base.layer).__name__} would hold values that are not finite. "
                "The adapter seems to be broken; nothing was merged."
            )


def stored_weight(base: BaseLayer) -> nn.Parameter | None:
    """Return the parameter in which a layer stores its weight, if it is one."""
    holder, _ = innermost(base.layer, base.weight_name)
    return holder._parameters.get(base.weight_name)


def _subtractable(parts: Iterable[Adapter]) -> bool:
    return all(isinstance(part, WeightDelta) and part.subtractable for part in parts)


def _sum_of_deltas(parts: Iterable[Adapter]) -> Tensor:
    deltas = [part.canonical_delta() for part in parts if isinstance(part, WeightDelta)]
    return functools.reduce(torch.add, deltas)
