"""Selective: some entries of the model's own weights train, in copies; the frozen ones are never written to.

What people know as ``modules_to_save``, ``bias=`` and ``trainable_token_indices`` are adapters of this family, so they
switch, mix in a batch, are deleted and saved like all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import Self

from peftcore.adapters.base import Adapter, Below
from peftcore.adapters.delta import MATRIX_KINDS
from peftcore.adapters.entries import ChangesEntries, Slices
from peftcore.base_layers.base import BaseLayer
from peftcore.base_layers.module import OpaqueLayer
from peftcore.exceptions import NotMergeableError, TargetError


class Selective(Adapter):
    """Trains copies of some entries of one layer's weights."""

    def __init__(self, base: BaseLayer) -> None:
        nn.Module.__init__(self)
        self.base = base

    def acting(self, name: str) -> Any:
        """Return an attribute of the layer as it is with this adapter, for an owner that reads and never calls it.

        Raises:
            AttributeError: The adapter leaves it as it is.
        """
        raise AttributeError(name)

    def settle(self) -> nn.Module:
        """Return the module that stands in the model for good once the adapter is merged and taken out.

        Raises:
            NotMergeableError: The adapter changes a weight instead, and is folded into it.
        """
        raise NotMergeableError(f"{type(self).__name__} replaces no module.")


class ModuleCopy(Selective):
    """A trained copy of a whole module, called instead of it (``modules_to_save``).

    A copy that is kept in a finer dtype than the module, to train in it, is rounded to the module's for each call.

    Args:
        base: The module, whatever it is.
        module: The copy, free of adapters.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS - {"attention", "parameter"} | {"module"}
    replaces_layer = True

    def __init__(self, base: BaseLayer, module: nn.Module) -> None:
        super().__init__(base)
        self.module = module.requires_grad_(True)

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Run the copy; what stands below is not asked."""
        dtype = self.base.dtype
        if self.dtype == dtype:
            return self.module(*args, **kwargs)
        own = self.module.named_parameters()
        rounded = {name: parameter.to(dtype) for name, parameter in own if parameter.is_floating_point()}
        return functional_call(self.module, rounded, args, kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the copy's first floating-point tensor."""
        return OpaqueLayer(self.module).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the copy; its buffers, which do not train, keep their dtypes."""
        dtypes = [buffer.dtype for buffer in self.module.buffers()]
        super().to(*args, **kwargs)
        for buffer, dtype in zip(self.module.buffers(), dtypes, strict=True):
            buffer.data = buffer.data.to(dtype)
        return self

    def saved_module(self) -> nn.Module:
        """Return the copy: the file holds it under the module's own names."""
        return self.module

    def acting(self, name: str) -> Any:
        """Return the copy's attribute."""
        value = getattr(self.module, name)
        return value.to(self.base.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def settle(self) -> nn.Module:
        """Return the copy, in the frozen module's dtypes and trainable where that one is."""
        for own, frozen in zip(_tensors(self.module), _tensors(self.base.layer), strict=True):
            if own.dtype != frozen.dtype:
                own.data = own.data.to(frozen.dtype)
            own.requires_grad_(frozen.requires_grad)
        return self.module


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


class ParameterCopies(Selective):
    """Trained copies of some parameters of one module, in their place while it runs.

    Args:
        base: The module, whatever it is.
        names: Names of its own parameters.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"module"})
    replaces_layer = True

    def __init__(self, base: BaseLayer, names: Sequence[str]) -> None:
        super().__init__(base)
        for name in names:
            original = base.layer.get_parameter(name)
            self.register_parameter(name, nn.Parameter(original.detach().clone()))

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Run the module with the copies in the place of its parameters."""
        return functional_call(self.base.layer, dict(self.named_parameters()), args, kwargs)

    def acting(self, name: str) -> Any:
        """Return the copy of a parameter."""
        return self.get_parameter(name)

    def settle(self) -> nn.Module:
        """Return the module, with the copies in the place of its parameters."""
        for name, copied in self.named_parameters():
            trains = self.base.layer.get_parameter(name).requires_grad
            setattr(self.base.layer, name, nn.Parameter(copied.detach(), requires_grad=trains))
        return self.base.layer


class ReplacedWeight(Selective):
    """Another frozen weight in the place of the layer's own, under everything else that the adapter has there.

    It does not train. Files bring it where the weights of an embedding were written along, because it had new rows.

    Args:
        base: The layer.
        weight: As the layer stores it.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "embedding"})
    acts_first = True

    def __init__(self, base: BaseLayer, weight: Tensor) -> None:
        super().__init__(base)
        self.register_buffer("weight", weight)

    weight: Tensor

    def _canonical(self) -> Tensor:
        return self.weight.t() if self.base.kind == "embedding" else self.weight

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Run the layer with the other weight."""
        output = self.base.apply(self._canonical(), *args, **kwargs)
        return output if self.base.bias is None else self.base.add_bias(output, self.base.bias)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the other weight."""
        return self._canonical().to(weight.dtype), bias


class RowsApart(Selective):
    """Nothing of its own: it makes a module that reads its parts' weights run once per adapter in a mixed batch."""

    kinds: ClassVar[frozenset[str]] = frozenset({"module"})
    repeats_another = True

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Run what stands below."""
        return below(*args, **kwargs)


class TrainedBias(Selective):
    """A trained copy of a layer's bias."""

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
    commutes = True
    changes_bias = True
    changes_weight = False

    def __init__(self, base: BaseLayer) -> None:
        super().__init__(base)
        if base.bias is None:
            raise TargetError(f"A {type(base.layer).__name__} without a bias has none to train.")
        self.bias = nn.Parameter(base.bias.detach().clone())

    def forward(self, below: Below, *args: Any, **kwargs: Any) -> Any:
        """Return the output below, shifted by the difference between the copy and the frozen bias."""
        assert self.base.bias is not None
        return self.base.add_bias(below(*args, **kwargs), self.bias - self.base.bias)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add the difference to the bias."""
        assert self.base.bias is not None and bias is not None
        return weight, bias + (self.bias - self.base.bias)


class TokenRows(Selective, ChangesEntries):
    """What the rows of some tokens do on one of the layers that store them."""

    def acts_by_weight(self, before: Sequence[Adapter]) -> bool:
        """Whether the layer has a ``forward`` of its own, which may do more to a row than to look it up."""
        return bool(getattr(self.base, "has_own_forward", False))


class TrainedTokens(TokenRows):
    """Trained copies of some rows of an embedding (``trainable_token_indices``).

    Attributes:
        trainable_tokens_delta: The rows as they are now, ``[tokens, dim]`` (not differences, whatever the name says).

    Args:
        base: The embedding.
        tokens: The rows' indices; each once.

    Raises:
        TargetError: An index is negative, not in the vocabulary, or given twice.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def __init__(self, base: BaseLayer, tokens: Sequence[int]) -> None:
        super().__init__(base)
        distinct = tokens and len(set(tokens)) == len(tokens)
        if not (distinct and min(tokens) >= 0 and max(tokens) < base.in_features):
            raise TargetError(
                f"The rows of an embedding to train must be given by distinct indices below {base.in_features}, the "
                f"size of its vocabulary, got {list(tokens)!r}."
            )
        index = torch.tensor(list(tokens))
        self.register_buffer("tokens", index, persistent=False)
        for name, tensor in zip(("_sorted", "_order"), index.sort(), strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.trainable_tokens_delta = nn.Parameter(self.entries().read(base.weight().detach()))

    tokens: Tensor
    _sorted: Tensor
    _order: Tensor

    def tied(self, base: BaseLayer, config: Any) -> TiedTokens:
        """Return the rows as they act on another layer that stores the same weight."""
        return TiedTokens(base, self)

    def forward(self, below: Below, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output below, with the vectors of the trained tokens in their places."""
        return self.put_rows(below(ids, *args, **kwargs), ids)

    def put_rows(self, output: Tensor, ids: Tensor) -> Tensor:
        """Put the vectors of the trained tokens into an embedding's output, where their ids stand."""
        place = torch.searchsorted(self._sorted, ids.contiguous()).clamp_(max=len(self._sorted) - 1)
        hit = self._sorted[place] == ids
        vectors = nn.functional.embedding(self._order[place], self.trainable_tokens_delta).to(output.dtype)
        return torch.where(hit.unsqueeze(-1), vectors, output)

    def entries(self) -> Slices:
        """Return the rows' places, which are columns of the canonical weight."""
        return Slices(1, self.tokens)

    def fold_entries(self, held: Tensor) -> Tensor:
        """Return the rows, ``[tokens, dim]``."""
        return self.trainable_tokens_delta


class TiedTokens(TokenRows):
    """The rows that :class:`TrainedTokens` trains, on another embedding or an output layer that stores the same weight.

    It holds nothing of its own: the rows belong to the embedding's adapter, and the file has them once.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "embedding"})
    repeats_another = True

    def __init__(self, base: BaseLayer, source: TrainedTokens) -> None:
        super().__init__(base)
        # Kept out of the module tree: the source stands there already.
        self.__dict__["source"] = source

    source: TrainedTokens

    def acts_by_weight(self, before: Sequence[Adapter]) -> bool:
        """Whether another forward pass stands in the way, or the bias of the tokens' logits is not the frozen one."""
        return super().acts_by_weight(before) or any(part.changes_bias for part in before)

    def repeated_tensors(self) -> Mapping[str, Tensor]:
        """Return the rows."""
        return {"trainable_tokens_delta": self.source.trainable_tokens_delta}

    @property
    def dtype(self) -> torch.dtype:
        """The rows' dtype."""
        return self.source.dtype

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output below with the trained tokens' vectors, or with their logits, computed from their rows."""
        output = below(x, *args, **kwargs)
        if self.base.kind == "embedding":
            return self.source.put_rows(output, x)
        rows = self.source.trainable_tokens_delta
        logits = nn.functional.linear(x.to(rows.dtype), rows).to(output.dtype)
        bias = self.base.read_bias()  # with what is merged into it
        if bias is not None:
            logits = logits + bias[self.source.tokens]
        return output.index_copy(-1, self.source.tokens, logits)

    def entries(self) -> Slices:
        """Return the rows' places in this layer's weight."""
        return Slices(1 if self.base.kind == "embedding" else 0, self.source.tokens)

    def fold_entries(self, held: Tensor) -> Tensor:
        """Return the rows, ``[tokens, dim]``."""
        return self.source.trainable_tokens_delta
