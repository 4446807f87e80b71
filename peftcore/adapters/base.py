"""Adapter: the part of an adapter that stands on one layer.

An adapter module holds its own parameters and its mathematics, and nothing else.
It knows neither its name nor the other adapters.
Switching, casting back, merging and mixed batches are the adapted layer's.
What it must say is given twice, and both say the same:

* :meth:`Adapter.forward`, as a layer around the layers below it, and
* :meth:`Adapter.fold`, as what becomes of the weight.

A method derives from a family (:mod:`peftcore.adapters.delta` and its neighbours), which writes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore.base_layers.base import BaseLayer
from peftcore.config import PeftConfig
from peftcore.exceptions import ConfigError, NotMergeableError
from peftcore.modules import LeanModule

#: What an adapter stands around: the frozen layer, or it and the adapters before.
Below = Callable[..., Any]


class Adapter(LeanModule):
    """What one method adds to one layer.

    ``state_dict()`` of :meth:`saved_module` is what the file holds for this layer, in the file's names.
    Parameters train; what is saved but frozen is a buffer; what is neither is a non-persistent buffer.

    Args:
        base: The frozen layer.
        config: The method's config as it holds for this layer (patterns applied).
        shared: What the adapter holds once per model, or None.
    """

    #: Kinds of base layer that the mathematics is defined on.
    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    #: Whether a weight can hold the adapter's effect; if not, :attr:`unmergeable_because` says why.
    mergeable: ClassVar[bool] = True
    #: Why the effect can't be folded, as the end of a sentence: "its output depends on …".
    unmergeable_because: ClassVar[str] = ""
    #: Whether what it computes is computed from the frozen weight, which is then kept while others are merged.
    depends_on_weight: ClassVar[bool] = False
    #: Whether it acts before the other parts of its own adapter.
    acts_first: ClassVar[bool] = False
    #: Whether it changes the layer's weight; if not, merging leaves that alone.
    changes_weight: bool = True
    #: Whether it changes the layer's bias.
    changes_bias: bool = False
    #: Whether it only adds something, so that its place in the order of others does not matter.
    commutes: ClassVar[bool] = False
    #: Whether it calls what stands below with the very inputs that it is called with, so that the frozen layer may run
    #: once for the rows of several adapters.
    keeps_inputs: ClassVar[bool] = False
    #: Whether it stands for the whole layer, so that no second one of its sort can be active beside it.
    replaces_layer: ClassVar[bool] = False
    #: Whether it repeats another adapter's effect on a layer that stores the same weight; then merging the other one
    #: merges this one too.
    repeats_another: ClassVar[bool] = False
    #: Attributes that ``repr`` shows beside the kind of layer, of those that the adapter has.
    shown: ClassVar[tuple[str, ...]] = ("r", "scaling")

    base: BaseLayer
    #: What the adapter holds once per model, or None.
    shared: Any

    def __init__(self, base: BaseLayer, config: PeftConfig, shared: Any = None) -> None:
        super().__init__()
        # Not by attribute: this runs for every layer that is adapted, and nn.Module's attributes are slow to set.
        # What is shared is kept out of the module tree: it is no part of this layer's state.
        self.__dict__.update(base=base, shared=shared)

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether this class can stand on a layer; by default, whether the layer's kind is among :attr:`kinds`."""
        return base.kind in cls.kinds

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Run the layers below and add this adapter's effect.

        Args:
            below: Call it with (changed) inputs, once, for the output of what stands below.
            *args, **kwargs: What the layer is called with; :meth:`cast` brings the first to the adapter's dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward, or derive from a family that does")

    def acts_by_weight(self, before: Sequence[Adapter]) -> bool:
        """Whether :meth:`forward` can't do it, so that the weight has to be folded for each call.

        Args:
            before: The adapters that act before it on the layer.
        """
        return False

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias with this adapter's effect in them; the arguments stay as they are.

        Args:
            weight: Canonical weight, with the effect of the adapters before.
            bias: ``[out]``, or None.

        Raises:
            NotMergeableError: No weight can hold the effect.
        """
        raise NotMergeableError(
            f"{type(self).__name__} can't be merged: {self.unmergeable_because or 'it has no fold'}."
        )

    def fold_in_call(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what :meth:`fold` does, for one forward pass; to be overridden where training drops something out."""
        return self.fold(weight, bias)

    def tied(self, base: BaseLayer, config: Any) -> Adapter:
        """Return this adapter as it acts on another layer that stores the same weight.

        Args:
            base: The other layer; an embedding's weight may be a linear layer's there.
            config: The method's config as it holds for that layer.

        Raises:
            ConfigError: The method's adapters can't be shared.
        """
        raise ConfigError(
            f"ensure_weight_tying: {type(self).__name__} can't be shared by layers that store one weight."
        )

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Get ready for tensors that are about to be copied into :meth:`saved_module`, or take them.

        To be overridden by adapters whose saved module is made for the occasion, or who must check what comes.

        Args:
            state: The tensors by their names in that module.

        Raises:
            CheckpointError: The adapter can't work with them.
        """

    def saved_module(self) -> nn.Module:
        """Return the module whose state the file holds: this one, unless it only carries another."""
        return self

    def repeated_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of other parts that a file may hold again under this part's key, by their names there.

        Files written here hold each tensor once. What a file holds again has to be the same.
        """
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the adapter computes, that of its first tensor."""
        first = _first_tensor(self)
        return self.base.dtype if first is None else first.dtype

    def cast(self, x: Tensor) -> Tensor:
        """Bring an input to the adapter's dtype; integers (token ids) stay what they are."""
        return x.to(self.dtype) if x.is_floating_point() else x

    def extra_repr(self) -> str:
        values = {name: getattr(self, name) for name in self.shown if hasattr(self, name)}
        written = (
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
        )
        return ", ".join([f"kind={self.base.kind}", *written])


def _first_tensor(module: nn.Module) -> Tensor | None:
    """Return a module's first parameter or else its first buffer, without walking the rest: forward asks for it."""
    for store in (module._parameters, module._buffers):
        for tensor in store.values():
            if tensor is not None:
                return tensor
    for child in module._modules.values():
        if child is not None and (found := _first_tensor(child)) is not None:
            return found
    return None


class AdapterDict(LeanModule):
    """Adapters by name. Any name without a dot is a legal key, also one that :class:`torch.nn.ModuleDict` refuses."""

    def __getitem__(self, name: str) -> Adapter:
        return self._modules[name]  # type: ignore[return-value]

    def __setitem__(self, name: str, adapter: Adapter) -> None:
        self._modules[name] = adapter

    def __delitem__(self, name: str) -> None:
        del self._modules[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def keys(self) -> Iterable[str]:
        """Return the names."""
        return self._modules.keys()
