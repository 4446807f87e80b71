"""AdaptedLayer: the module that stands in the model where the frozen layer stood.

It owns what adapters leave to it: the order of the active ones, merging, casting back, mixed batches.
What acts together, and how, is said in :mod:`peftcore.composition`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from peftcore.adapters.base import Adapter, AdapterDict
from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.selective import Selective
from peftcore.base_layers.base import BaseLayer
from peftcore.call_state import BASE, CallState, Rows
from peftcore.composition import fold, run, run_deltas
from peftcore.exceptions import AdapterNameError, CompositionError, MergeError, MixedBatchError
from peftcore.merging import MergedWeight, check_finite, check_mergeable, stored_weight
from peftcore.modules import LeanModule
from peftcore.row_groups import run_rows
from peftcore.stacking import Stacks

#: Where the parts of an adapter on one layer are, in the order in which they act: its method's; what repeats rows that
#: train on another layer; what else trains beside the method.
_STORES = ("adapters", "repeated", "auxiliary")


class AdaptedLayer(LeanModule):
    """A frozen layer and the adapters on it.

    Attributes:
        base_layer: The frozen layer.
        base: The view by which adapters see it.
        adapters: What each adapter's method adds, by the adapter's name.
        call_state: What holds for the current call on the model.

    Any other attribute is the base layer's (``weight``, ``in_features`` …), or else a read-only view of the adapters'
    attribute of that name: ``layer.scaling["default"]``.
    """

    base_layer: nn.Module
    base: BaseLayer
    call_state: CallState
    adapters: AdapterDict

    _active: tuple[str, ...] = ()
    _merged: tuple[str, ...] = ()
    #: Adapters that act in forward, in order: active, and not folded into the weight already.
    _acting: tuple[Adapter, ...] = ()
    #: Whether all that act are deltas, which may then act on the input one by one.
    _only_deltas: bool = True
    #: Whether the layer has a weight of its own while something is merged, since others store the same one and are not
    #: changed alike. Then it also takes up what otherwise reaches it through the shared weight.
    keeps_weight_apart: bool = False
    #: What is needed to take out again what is merged; None if nothing is.
    _merging: MergedWeight | None = None
    #: What mixed batches keep stacked; None until there has been one.
    _stacks: Stacks | None

    def __init__(self, base: BaseLayer, call_state: CallState) -> None:
        super().__init__()
        # Not by attribute: this runs for every layer that is adapted, and nn.Module's attributes are slow to set.
        self.__dict__.update(base=base, call_state=call_state, _stacks=None)
        self._modules.update(base_layer=base.layer, adapters=AdapterDict())

    @property
    def auxiliary(self) -> AdapterDict:
        """The parts beside the methods, by adapter; most layers have none, and then no module for them."""
        found = self._modules.get("auxiliary")
        return found if isinstance(found, AdapterDict) else AdapterDict()

    # ------------------------------------------------------------------------------------------- contents

    def _stores(self) -> tuple[AdapterDict, ...]:
        modules = self._modules
        return tuple(modules[name] for name in _STORES if name in modules)  # type: ignore[misc]

    def parts(self, name: str) -> tuple[Adapter, ...]:
        """Return what an adapter has on this layer, in the order in which it acts; nothing for an unknown name."""
        if len(self._modules) == 2:  # the base layer and the methods' parts, as on nearly every layer
            own: Any = self._modules["adapters"]._modules.get(name)  # type: ignore[union-attr]
            return () if own is None else (own,)
        parts: list[Any] = [store._modules[name] for store in self._stores() if name in store._modules]
        if len(parts) > 1:
            parts.sort(key=lambda part: not part.acts_first)
        return tuple(parts)

    def names(self) -> list[str]:
        """Return the names of the adapters that have a part on this layer."""
        return list(dict.fromkeys(name for store in self._stores() for name in store))

    def is_bare(self) -> bool:
        """Whether no adapter has a part on this layer."""
        return not any(store._modules for store in self._stores())

    def place(self, name: str, adapter: Adapter, *, auxiliary: bool = False) -> None:
        """Put a part of an adapter on this layer; it acts once it is active."""
        kind = "adapters" if not auxiliary else "repeated" if adapter.repeats_another else "auxiliary"
        store = self._modules.get(kind)
        if not isinstance(store, AdapterDict):
            store = self._modules[kind] = AdapterDict()
        merged = self._merged
        if adapter.depends_on_weight and merged:
            self.unmerge()
        store[name] = adapter
        if adapter.training != self.training:
            adapter.train(self.training)
            store.training = self.training
        if merged and not self._merged:
            self.merge_again(merged)
        if name in self._active:
            self._replan()

    def detach(self, name: str) -> tuple[Adapter, ...]:
        """Take an adapter off this layer and return its parts, weights and all; the base layer is as it was before it.

        Raises:
            AdapterNameError: The layer has no such adapter.
        """
        parts = self.parts(name)
        if not parts:
            raise AdapterNameError(f"This layer has no adapter {name!r}; it has {', '.join(self.names()) or 'none'}.")
        others = [merged for merged in self._merged if merged != name]
        if name in self._merged:
            self.unmerge()
        self.__dict__["_stacks"] = None  # its weights may be among them
        for store in self._stores():
            if name in store:
                del store[name]
        if name in self._active:
            self._active = tuple(active for active in self._active if active != name)
            self._replan()
        if others and not self._merged:
            self.merge_again(others)
        return parts

    # --------------------------------------------------------------------------------------- what is active

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters that have a part here, in order."""
        return list(self._active)

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are folded into the weight, in order."""
        return list(self._merged)

    @property
    def merged(self) -> bool:
        """Whether any adapter is folded into the weight."""
        return bool(self._merged)

    @property
    def disable_adapters(self) -> bool:
        """Whether the adapters are switched off."""
        return not self.call_state.enabled

    def get_base_layer(self) -> nn.Module:
        """Return the frozen layer."""
        return self.base_layer

    def check_together(self, names: Iterable[str]) -> None:
        """Check that adapters can be active together on this layer.

        Raises:
            CompositionError: One of them stands for the whole layer, so another has nothing to act on.
        """
        here = {name: parts for name in names if (parts := self.parts(name))}
        if len(here) < 2:
            return
        whole = next((name for name, parts in here.items() if any(part.replaces_layer for part in parts)), None)
        if whole is not None:
            other = next(name for name in here if name != whole)
            raise CompositionError(
                f"Adapter {whole!r} trains a copy of a whole {type(self.base_layer).__name__} "
                f"(modules_to_save or bias), so {other!r} can't act on the same layer beside it. Activate one of them."
            )

    def activate(self, names: Sequence[str]) -> None:
        """Make these adapters the active ones, in this order; those without a part here are passed over.

        Raises:
            CompositionError: See :meth:`check_together`; nothing has changed then.
        """
        if len(names) > 1:
            self.check_together(names)
        self.__dict__["_active"] = tuple([name for name in names if self.parts(name)])
        self._replan()

    def _replan(self) -> None:
        # In lists, which are quicker than generators: this runs for every layer whenever adapters are switched.
        acting = [
            part
            for name in self._active
            for part in self.parts(name)
            if part.replaces_layer or name not in self._merged
        ]
        only_deltas = self.base.additive and all([isinstance(part, WeightDelta) for part in acting])
        self.__dict__.update(_acting=tuple(acting), _only_deltas=only_deltas)

    # -------------------------------------------------------------------------------------------- forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the frozen layer with what acts on it; arguments and result are those of the frozen layer."""
        state = self.call_state
        if not state.enabled:
            return self.base.forward(*args, **kwargs)
        if not args and self.base.takes_one_input:
            args, kwargs = (kwargs.pop(next(iter(kwargs))),), kwargs
        rows = state.current_rows()
        if rows is not None:
            return self._forward_rows(rows, args, kwargs)
        if not self._acting:
            return self.base.forward(*args, **kwargs)
        if self._only_deltas:
            return run_deltas(self.base, self._acting, args, kwargs)  # type: ignore[arg-type]
        return run(self.base, self._acting, args, kwargs)

    # --------------------------------------------------------------------------------------- mixed batches

    def _forward_rows(self, rows: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stacks = self._stacks
        if stacks is None:
            stacks = self.__dict__["_stacks"] = Stacks()
        return run_rows(self.base, self.parts, self._places_of_parts, self.call_state, rows, stacks, args, kwargs)

    def _places_of_parts(self, names: Iterable[str]) -> list[tuple[Mapping[str, Any], str]]:
        """Return everywhere that :meth:`parts` looks for these adapters' parts."""
        kinds: list[tuple[Mapping[str, Any], str]] = [(self._modules, kind) for kind in _STORES]
        return kinds + [(store._modules, name) for name in names for store in self._stores()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.__dict__["_stacks"] = None  # what is moved or cast leaves no copy behind
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    # -------------------------------------------------------------------------------------------- merging

    def merge(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Fold adapters into the frozen weight; those merged already are passed over.

        Args:
            adapter_names: Which, in order; the active ones if None.
            safe_merge: Refuse a merged weight that is not finite, before anything is written.

        Raises:
            NotMergeableError: One of them can't be folded.
            MergeError: The merged weight is not finite, or the storage can't hold it.
        """
        wanted = self._active if adapter_names is None else adapter_names
        names = [name for name in dict.fromkeys(wanted) if name not in self._merged and self.parts(name)]
        parts = self.folding_parts(names)
        check_mergeable(parts)
        self._check_order(names)
        if safe_merge:
            check_finite(part for name in names for part in self.parts(name) if part.replaces_layer)
        self._merge(names, parts, safe_merge)

    def merge_again(self, adapter_names: Sequence[str]) -> None:
        """Fold in what was merged before and taken out for a while; whether it may be merged is not asked again."""
        self._merge(adapter_names, self.folding_parts(adapter_names))

    def _merge(self, names: Sequence[str], parts: Sequence[Adapter], safe_merge: bool = False) -> None:
        if parts:
            self._write(parts, safe_merge)
        self.__dict__["_merged"] = (*self._merged, *names)
        self._replan()

    def _write(self, parts: Sequence[Adapter], safe_merge: bool) -> None:
        merging = self._merging or MergedWeight(self.base)
        self.__dict__["_merging"] = merging
        if self.keeps_weight_apart:
            merging.separate()
        before = self.folding_parts(self._merged) if self._merged else ()
        keep = any([part.depends_on_weight for name in self.names() for part in self.parts(name)])
        try:
            merging.merge(before, parts, safe_merge=safe_merge, keep=keep)
        except Exception:
            if not self._merged:
                merging.unmerge(())
                self._merging = None
            raise

    def _check_order(self, names: Sequence[str]) -> None:
        """Refuse to merge what acts above something that is not merged, unless it is all sums, which have no order."""
        first = [*self._merged, *names]
        order = [name for name in first if name in self._active]
        in_order = order == list(self._active[: len(order)])
        if not in_order and not all(part.commutes for part in self.weight_parts(self._active)):
            raise MergeError(
                f"The active adapters act in the order {', '.join(self._active)}, which matters for their methods: "
                f"merging {', '.join(names)} first would change the output. Merge them in that order."
            )

    def unmerge(self) -> None:
        """Take out of the weight what is merged; nothing happens if nothing is."""
        if self._merging is not None:
            self._merging.unmerge(self.folding_parts(self._merged))
            self._merging = None
        self._merged = ()
        self._replan()

    def keep_merged(self) -> None:
        """Forget how to take out what is merged: the merged weight is the layer's own from now on."""
        self._merging = None
        self._active = tuple(name for name in self._active if name not in self._merged)
        self._merged = ()
        self._replan()

    def weight_parts(self, names: Iterable[str]) -> list[Adapter]:
        """Return the parts that change this layer's weight: those that do not stand for, or on, a whole module."""
        parts = (part for name in names for part in self.parts(name))
        return [part for part in parts if not (part.replaces_layer or part.base.kind == "module")]

    def folding_parts(self, names: Iterable[str]) -> list[Adapter]:
        """Return the parts that write to this layer's weight when they are merged.

        What repeats another layer's part comes with the weight that both store, unless this layer keeps its own apart.
        """
        return [part for part in self.weight_parts(names) if self.keeps_weight_apart or not part.repeats_another]

    @property
    def frozen_parameter(self) -> nn.Parameter | None:
        """The parameter in which the frozen layer stores its weight when nothing is merged, if it is one."""
        shared = None if self._merging is None else self._merging.shared
        return stored_weight(self.base) if shared is None else shared

    # ------------------------------------------------------------------- what others ask the frozen layer for

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "base_layer":
            # Something (sharding, quantisation) put itself in the place of the frozen layer, or around it.
            self.base.layer = value

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("base")
            if base is None or name == "base_layer":
                raise
        if name.startswith("__"):
            raise AttributeError(name)  # how the frozen layer is copied or pickled is not how this one is
        if base.read_by_owner:
            with contextlib.suppress(AttributeError):
                return self._acting_attribute(name)
        try:
            return getattr(self.base_layer, name)
        except AttributeError:
            return self._view_of_adapters(name)

    def _acting_attribute(self, name: str) -> Any:
        """An attribute of the frozen layer as it acts now, for an owner that reads it and never calls this layer."""
        parts: Sequence[Adapter] = self._acting if self.call_state.enabled else ()
        rows = self.call_state.current_rows()
        weights = (self.base.weight_name, self.base.bias_name)
        if rows is not None and self.call_state.enabled:
            if rows.only is None and name in weights:
                raise MixedBatchError(
                    f"Another module reads the weights of a {type(self.base_layer).__name__} and never calls it, so "
                    "its rows can't have different adapters. Adapt the module that holds it instead."
                )
            parts = () if rows.only in (None, BASE) else self.parts(rows.only)
        for part in parts:
            if isinstance(part, Selective) and part.replaces_layer:
                return part.acting(name)
        if name not in weights or not parts:
            return getattr(self.base_layer, name)
        weight, bias = fold(self.base, parts, in_call=True)
        return bias if name == self.base.bias_name else weight

    def _view_of_adapters(self, name: str) -> Mapping[str, Any]:
        found = {
            key: getattr(part, name) for key in self.adapters for part in (self.adapters[key],) if hasattr(part, name)
        }
        if not found:
            raise AttributeError(
                f"Neither {type(self.base_layer).__name__} nor an adapter on it has an attribute {name!r}."
            )
        return MappingProxyType(found)
