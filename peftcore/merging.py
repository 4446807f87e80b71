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
        if self.base.kept is None and not keep and _subtractable([*before, *parts]):
            if safe_merge:
                self._check_finite((self.base.read_weight() + _sum_of_deltas(parts)).to(self.base.dtype))
            self._add(parts)
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
        if self.shared is not None:
            self._put(self.shared)
            self.shared = None

    def separate(self) -> None:
        """Give the layer a weight of its own, for one that another module stores too; unmerging gives it up again."""
        shared = stored_weight(self.base)
        if shared is not None and self.shared is None:
            self.shared = shared
            self._put(nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))

    def _write_folded(self, parts: Sequence[Adapter], safe_merge: bool) -> None:
        weight, bias = fold(self.base, parts)
        if safe_merge:
            self._check_finite(weight)
            self._check_finite(bias)
        if _belongs_to(weight, parts):
            weight = weight.clone()
        self.base.kept = self._exchange(weight, bias)

    def _restore_frozen(self, merged: Sequence[Adapter]) -> None:
        if self.base.kept is not None:
            self._exchange(*self.base.kept)
            self.base.kept = None
        elif merged:
            self._add(merged, -1.0)

    def _add(self, parts: Sequence[Adapter], sign: float = 1.0) -> None:
        """Add the sum of deltas to the weight, or subtract it, rounding once; never formed if all are thin products."""
        factors = [part.thin_factors() for part in parts if isinstance(part, WeightDelta)]
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

    def _exchange(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Write a weight and a bias, and return what was there."""
        stored = self.base.read_bias()
        bias_before = None if stored is None else stored.detach().clone()
        if bias is not stored:
            self.base.set_bias_(bias)
        try:
            return self.base.exchange_(weight), bias_before
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


def _sum_of_deltas(parts: Iterable[Adapter]) -> Tensor:
    deltas = [part.canonical_delta() for part in parts if isinstance(part, WeightDelta)]
    return functools.reduce(torch.add, deltas)
