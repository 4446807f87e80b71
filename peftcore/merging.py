"""Merging: adapters folded into one frozen weight, and taken out of it again.

What changes few entries is written into these, which are kept.
Deltas that can be computed again are added and subtracted in place, so merging costs no memory.
For everything else the frozen weight is kept while something is merged, and put back; it is not copied, and stays where
it is if the bias alone changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import ThinFactors, WeightDelta
from peftcore.adapters.entries import ChangesEntries, Entries
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.base_layers.base import BaseLayer, DenseLayer, innermost
from peftcore.base_layers.storage import writing
from peftcore.composition import fold
from peftcore.exceptions import MergeError, NotMergeableError


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


def check_finite(copies: Iterable[Adapter]) -> None:
    """Check that what is going to stand in the place of whole modules holds finite numbers.

    Raises:
        MergeError: Something holds others.
    """
    for copied in copies:
        wrong = [name for name, tensor in copied.named_parameters() if not tensor.isfinite().all()]
        if wrong:
            raise MergeError(
                f"{wrong[0]} in the trained copy of a {type(copied.base.layer).__name__} holds values that are not "
                "finite: the adapter seems to be broken. Nothing was merged."
            )


class MergedWeight:
    """The weight of one frozen layer while adapters are merged into it.

    Args:
        base: The layer's view.
    """

    def __init__(self, base: BaseLayer) -> None:
        self.base = base
        #: The parameter that another module stores too, kept while this layer has one of its own.
        self.shared: nn.Parameter | None = None
        #: Which entries of the weight have been written alone, and what they held.
        self.entries: tuple[Entries, Tensor] | None = None

    @torch.no_grad()
    def merge(
        self, before: Sequence[Adapter], parts: Sequence[Adapter], *, safe_merge: bool = False, keep: bool = False
    ) -> None:
        """Fold adapters into the weight.

        Args:
            before: What is merged already, in order.
            parts: What comes to it, in order.
            safe_merge: Refuse a weight or a bias that would not be finite.
            keep: Keep the frozen weight even if all can be subtracted, for adapters that are computed from it.

        Raises:
            MergeError: The weight would not be finite, or the storage can't hold it. The weight is as before.
        """
        if before and not keep and self._is_added_to() and _subtractable([*before, *parts]):
            self._add_new(parts, safe_merge)
            return
        # Deltas are computed from the frozen weight, so it has to be in place while everything is folded anew.
        self._restore_frozen(before)
        try:
            self._write([*before, *parts], safe_merge, keep)
        except Exception:
            if before:
                self._write(before, False, keep)
            raise

    @torch.no_grad()
    def unmerge(self, merged: Sequence[Adapter]) -> None:
        """Take everything that is merged out of the weight."""
        self._restore_frozen(merged)
        if self.shared is not None:
            self._put(self.shared)
            self.shared = None

    def separate(self) -> None:
        """Give the layer a weight of its own, for one that another module stores too; unmerging gives it up again."""
        shared = stored_weight(self.base)
        if shared is not None and self.shared is None:
            self.shared = shared
            self._put(nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))

    def _is_added_to(self) -> bool:
        """Whether what is merged has been added to the weight, and nothing is kept."""
        return self.base.kept is None and self.entries is None

    def _write(self, parts: Sequence[Adapter], safe_merge: bool, keep: bool) -> None:
        """Fold adapters into the frozen weight, in the way that keeps the least."""
        if keep:
            self._write_folded(parts, safe_merge)
        elif (found := self._entries_of(parts)) is not None:
            self._write_entries(*found, safe_merge)
        elif _subtractable(parts):
            self._add_new(parts, safe_merge)
        else:
            self._write_folded(parts, safe_merge)

    def _entries_of(self, parts: Sequence[Adapter]) -> tuple[ChangesEntries, Entries] | None:
        """Return an adapter and the entries that it changes, if it is alone and they can be written in place."""
        if len(parts) > 1 or not isinstance(parts[0], ChangesEntries) or not _is_written_in_place(self.base):
            return None
        entries = parts[0].entries()
        return None if entries is None else (parts[0], entries)

    def _write_entries(self, part: ChangesEntries, entries: Entries, safe_merge: bool) -> None:
        weight = self.base.read_weight()
        held = entries.read(weight)
        values = part.fold_entries(held.to(torch.promote_types(held.dtype, part.dtype)))
        with writing(weight):
            entries.write_(weight, values)
        self.entries = entries, held
        if safe_merge:
            try:
                self._check_finite(weight)
            except MergeError:
                self._restore_frozen((part,))
                raise

    def _add_new(self, parts: Sequence[Adapter], safe_merge: bool) -> None:
        if safe_merge:
            self._check_finite((self.base.read_weight() + _sum_of_deltas(parts)).to(self.base.dtype))
        self._add(parts)

    def _write_folded(self, parts: Sequence[Adapter], safe_merge: bool) -> None:
        if not any([part.changes_weight for part in parts]):
            self._write_bias(parts, safe_merge)
            return
        weight, bias = fold(self.base, parts)
        if safe_merge:
            self._check_finite(weight)
            self._check_finite(bias)
        self.base.kept = self._exchange(weight, bias, parts)

    def _write_bias(self, parts: Sequence[Adapter], safe_merge: bool) -> None:
        """Fold adapters that change the bias alone; the weight is neither written nor cast."""
        weight, stored = self.base.read_weight(), self.base.read_bias()
        bias = stored
        for part in parts:
            bias = part.fold(weight, bias)[1]
        if safe_merge:
            self._check_finite(weight)
            self._check_finite(None if bias is None else bias.to(self.base.dtype))
        before = None if stored is None else stored.detach().clone()
        self.base.set_bias_(bias)
        self.base.kept = weight, before

    def _restore_frozen(self, merged: Sequence[Adapter]) -> None:
        if self.base.kept is not None:
            self._exchange(*self.base.kept)
            self.base.kept = None
        elif self.entries is not None:
            entries, held = self.entries
            weight = self.base.read_weight()
            with writing(weight):
                entries.write_(weight, held)
            self.entries = None
        elif merged:
            self._add(merged, -1.0)

    def _add(self, parts: Sequence[Adapter], sign: float = 1.0) -> None:
        """Add the sum of deltas to the weight, or subtract it, rounding once; never formed if all are products."""
        factors = [_factors(part) for part in parts if isinstance(part, WeightDelta)]
        thin = [factor for factor in factors if factor is not None]
        if len(thin) < len(factors):
            delta = _sum_of_deltas(parts)
            self.base.add_(delta if sign > 0 else -delta)
        elif len(thin) == 1:
            a, b, scaling = thin[0]
            self.base.add_product_(b, a, sign * scaling)
        else:  # side by side, the products of the factors add up
            b = torch.cat([factor.b * factor.scaling for factor in thin], dim=1)
            self.base.add_product_(b, torch.cat([factor.a for factor in thin]), sign)

    def _exchange(
        self, weight: Tensor, bias: Tensor | None, parts: Sequence[Adapter] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Write a weight and a bias, which may be tensors of adapters, and return what was there."""
        stored = self.base.read_bias()
        bias_before = stored
        if bias is not stored:
            bias_before = None if stored is None else stored.detach().clone()
            self.base.set_bias_(bias)
        if _is_same(weight, self.base.read_weight()):
            return weight, bias_before
        try:
            return self.base.exchange_(weight.clone() if _belongs_to(weight, parts) else weight), bias_before
        except Exception:  # a storage may refuse either, and then both are as before
            if bias is not stored:
                self.base.set_bias_(bias_before)
            raise

    def _put(self, weight: nn.Parameter) -> None:
        holder, _ = innermost(self.base.layer, self.base.weight_name)
        holder._parameters[self.base.weight_name] = weight

    def _check_finite(self, tensor: Tensor | None) -> None:
        if tensor is not None and not tensor.isfinite().all():
            raise MergeError(
                f"The merged weight or bias of a {type(self.base.layer).__name__} would hold values that are not "
                "finite: the adapter seems to be broken. Nothing was merged."
            )


def stored_weight(base: BaseLayer) -> nn.Parameter | None:
    """Return the parameter in which a layer stores its weight, if it is one."""
    holder, _ = innermost(base.layer, base.weight_name)
    return holder._parameters.get(base.weight_name)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are the same numbers in memory."""
    return one.device == other.device and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are one, or views of the same numbers in the same order."""
    return one is other or (
        _same_memory(one, other) and one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    )


def _is_written_in_place(base: BaseLayer) -> bool:
    """Whether to write into the weight that a layer's view reads is all that it takes to change the layer."""
    if not isinstance(base, DenseLayer) or type(base.stored) is not nn.Parameter:
        return False
    # A class that writes in its own way says so in that method.
    return getattr(base.replace_, "__func__", None) is DenseLayer.replace_


def _belongs_to(weight: Tensor, parts: Iterable[Adapter]) -> bool:
    """Whether a weight is a tensor of an adapter's, or shares memory with one."""
    modules = [
        module for part in parts for module in (part, getattr(part, "shared", None)) if isinstance(module, nn.Module)
    ]
    return any(
        _same_memory(weight, tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())
    )


def _subtractable(parts: Iterable[Adapter]) -> bool:
    return all(isinstance(part, WeightDelta) and part.subtractable for part in parts)


def _factors(part: WeightDelta) -> ThinFactors | None:
    """Return the factors of which Δ is the product, however it acts in a call; None if it has to be formed."""
    thin = part.thin_factors()
    if thin is not None or not isinstance(part, LowRankDelta) or len(part.base.weight_shape) != 2:
        return thin
    return ThinFactors(*part.factors()) if type(part).delta_weight is LowRankDelta.delta_weight else None


def _sum_of_deltas(parts: Iterable[Adapter]) -> Tensor:
    deltas = [part.canonical_delta() for part in parts if isinstance(part, WeightDelta)]
    return functools.reduce(torch.add, deltas)
