"""BaseLayer: the core's view of one frozen layer.

A method asks the view, never the layer: so one method works on every kind of layer, and a new kind of layer, or a
quantised storage, is one class here and serves every method.

**Canonical orientation.** A weight is a linear map, written ``[out, in]`` with any kernel dimensions behind:

========================  ==============================================
kind                      canonical weight
========================  ==============================================
linear                    ``[out, in]`` (whatever the storage, so transformers' ``Conv1D`` too)
conv1d, conv2d, conv3d    ``[out, in / groups, *kernel]``
embedding                 ``[dim, vocabulary]``: the map that takes a one-hot token to its vector
attention                 ``[3 · dim, dim]``: the stacked input projection
parameter                 ``[out, in]``, or ``[experts, out, in]`` for stacked experts
module                    none: only whole-module adapters (copies, biases) can stand on it
========================  ==============================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from peftcore.base_layers.storage import can_take, is_transposed, pieces, write_, writing
from peftcore.exceptions import MergeError, UnsupportedLayerError


class BaseLayer(ABC):
    """A frozen layer as a method sees it: its kind, its sizes, and how to read, write and apply its weight.

    The view holds no parameters and copies nothing; the layer stays the owner of its weight and may be moved or cast.

    Attributes:
        layer: The frozen layer.
        in_features: Size of the feature dimension of the input (vocabulary of an embedding).
        out_features: Size of the feature dimension of the output.
        groups: Groups of a convolution, 1 elsewhere.
        stack: Number of experts whose weights are stacked in the first dimension, 1 elsewhere.
    """

    #: What it is: linear, conv1d, conv2d, conv3d, embedding, attention, parameter, module …
    kind: ClassVar[str]
    #: Name of the weight in the layer, for those who read ``layer.weight`` from outside.
    weight_name: str = "weight"
    #: Name of the bias in the layer; empty for kinds that have none of their own.
    bias_name: ClassVar[str] = "bias"
    #: Whether apply(V + W, x) = apply(V, x) + apply(W, x): then deltas may act on the input one by one.
    additive: bool = True
    #: Whether other code reads weight and bias and never calls the layer, as torch's attention does with ``out_proj``.
    #: Whoever plans the adapters sets it where :func:`peftcore.base_layers.attention.reads_weights` says so.
    read_by_owner: bool = False
    #: The frozen weight and bias, while others are stored in their place: adapters are merged that can't be subtracted.
    kept: tuple[Tensor, Tensor | None] | None = None
    #: Whether the layer maps one tensor to one tensor, so that its input may also come by keyword.
    takes_one_input: ClassVar[bool] = True
    #: The dimension of inputs and outputs along which rows of a batch lie.
    batch_dim: int = 0

    layer: nn.Module
    in_features: int
    out_features: int
    groups: int = 1
    stack: int = 1

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __str__(self) -> str:
        """Return how messages call the layer: its class and its kind."""
        return f"{type(self.layer).__name__} (kind {self.kind})"

    def inner_layers(self) -> tuple[tuple[str, BaseLayer], ...]:
        """Return the layers inside this one that must be adapted with it, as (attribute, view)."""
        return ()

    # ------------------------------------------------------------------------------------------ the weight

    @property
    @abstractmethod
    def weight_shape(self) -> torch.Size:
        """The canonical weight's shape, known without reading (dequantising, gathering) it."""

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The canonical weight seen as a matrix: ``(out, in · kernel)``; per expert for stacked experts."""
        shape = self.weight_shape
        return shape[0], shape[1:].numel()

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """First dimensions of a parameter of which each stacked expert has its own: ``(experts,)``, else ``()``."""
        return (self.stack,) if self.stack > 1 else ()

    def weight(self) -> Tensor:
        """Return the frozen weight, dense and in canonical orientation; perhaps a view, so never write to it.

        It stays the same while adapters are merged: what an adapter computes from it does not depend on the others.
        """
        return self.read_weight() if self.kept is None else self.kept[0]

    @abstractmethod
    def read_weight(self) -> Tensor:
        """Return the weight as it is stored, dense and in canonical orientation; a view where the storage allows."""

    @abstractmethod
    def add_(self, delta: Tensor) -> None:
        """Add a canonical delta to the stored weight, in place, in the weight's dtype.

        Raises:
            MergeError: The storage can't hold another weight.
        """

    def add_product_(self, b: Tensor, a: Tensor, scaling: float = 1.0) -> None:
        """Add ``scaling · b @ a`` to the stored weight, as :meth:`add_` does.

        To be overridden where the product need not be formed.

        Args:
            b: ``[out, r]``.
            a: ``[r, in]``.
            scaling: What the product is multiplied by.

        Raises:
            MergeError: The storage can't hold another weight.
        """
        self.add_(scaling * (b @ a))

    @abstractmethod
    def replace_(self, weight: Tensor) -> None:
        """Write a canonical weight into the storage, in place.

        Raises:
            MergeError: The storage can't hold another weight.
        """

    def exchange_(self, weight: Tensor) -> Tensor:
        """Write a canonical weight into the storage, as :meth:`replace_` does, and return what it held.

        Args:
            weight: Becomes the stored tensor itself where that is possible, so it must be nobody else's.

        Raises:
            MergeError: The storage can't hold another weight.
        """
        held = self.read_weight().detach().clone()
        self.replace_(weight)
        return held

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, ``[out]``, or None; the same while adapters are merged."""
        return self.read_bias() if self.kept is None else self.kept[1]

    def read_bias(self) -> Tensor | None:
        """Return the bias as it is stored, ``[out]``, or None."""
        bias = getattr(self.layer, self.bias_name, None) if self.bias_name else None
        return bias if isinstance(bias, Tensor) else None  # some modules keep a flag under this name

    def set_bias_(self, bias: Tensor | None) -> None:
        """Write the layer's bias, in place where it has one; None takes away what is there.

        Where there was none, a frozen ``nn.Parameter`` is made, in the layer's dtype: to undo that, set None again.

        Args:
            bias: ``[out]``, or None.

        Raises:
            UnsupportedLayerError: Layers of this kind have no bias.
            MergeError: The bias has another shape.
        """
        stored = self.read_bias()
        if bias is None and stored is None:
            return
        if not self.bias_name:
            raise UnsupportedLayerError(f"A {type(self.layer).__name__} (kind {self.kind}) can't hold a bias.")
        if bias is not None and stored is not None:
            write_(stored, bias)
            return
        if bias is not None and self.out_features and bias.shape != (self.out_features,):
            raise MergeError(f"A bias of shape {list(bias.shape)} does not fit {self.out_features} outputs.")
        new = None if bias is None else bias.detach().to(device=self.device, dtype=self.dtype, copy=True)
        holder, _ = innermost(self.layer, self.bias_name)
        setattr(holder, self.bias_name, None if new is None else nn.Parameter(new, requires_grad=False))

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype in which the layer computes (of a quantised weight: of its dense form)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weight."""

    # ------------------------------------------------------------------------------------------ its operation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the frozen layer itself."""
        return self.layer(*args, **kwargs)

    def plain_matrix(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the stored weight ``[out, in]`` and the bias, if to run the layer is to multiply by them and no more.

        None where anything else would happen or could notice: another kind of layer, a hook, a forward of its own, a
        weight that trains or is no plain tensor.
        """
        return None

    @abstractmethod
    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's operation with another canonical weight and no bias.

        The weight may have another number of outputs (a low-rank factor ``[r, in, *kernel]``): stride, padding,
        dilation and groups are the layer's.
        Layers that are not :attr:`additive` run whole, biases included, with a weight of the layer's own shape.

        Args:
            weight: ``[any, *weight_shape[1:]]``.
            *args: What the layer is called with.
            **kwargs: What the layer is called with.
        """

    def apply_pointwise(self, matrix: Tensor, features: Tensor) -> Tensor:
        """Multiply the feature dimension of an output-like tensor by a matrix: a linear map, or a 1x1 convolution.

        Args:
            matrix: ``[out, r / groups]``.
            features: Shaped as :meth:`apply` returns, with ``r`` features.
        """
        return nn.functional.linear(features, matrix)

    def add_bias(self, output: Tensor, bias: Tensor) -> Tensor:
        """Add a vector ``[out]`` along the feature dimension of an output."""
        return output + bias

    def with_features_last(self, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Let a function over the last dimension act on the feature dimension of an input or an output."""
        return change(x)

    def scale_weight_inputs(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return a canonical weight whose inputs are multiplied by factors ``[in]``."""
        return weight * factors


def innermost(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module behind adapted layers that has an attribute of its own, and the attribute's path from outside.

    Two adapted layers stand around one module when two of its parameters are adapted. If no module has such an
    attribute, the innermost one is returned.
    """
    path = name
    while name not in module._parameters and name not in module.__dict__:
        inside = module._modules.get("base_layer")
        if inside is None:
            break
        module, path = inside, f"base_layer.{path}"
    return module, path


#: Dtypes in which layers compute directly; float8 and integers are storage that belongs to a quantisation backend.
DENSE_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


class DenseLayer(BaseLayer):
    """A layer whose weight is one plain floating-point parameter; a kind says how it is oriented and applied."""

    #: Dimensions of the weight.
    weight_dims: ClassVar[int] = 2

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        # Not by attribute: this runs for every layer of a model, and nn.Module's attributes are slow.
        self._measure(layer._parameters[self.weight_name].shape)  # type: ignore[union-attr]

    def _measure(self, stored: torch.Size) -> None:
        """Derive the sizes from the stored weight's shape."""
        self.out_features, self.in_features = stored

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return the view of a layer, or None if its weight is stored in a way that this class can't read.

        Quantised, sharded, re-parametrised and lazy weights are such; an extension may know them.
        """
        return cls(layer) if is_dense(layer, cls.weight_name, cls.weight_dims) else None

    @property
    def weight_shape(self) -> torch.Size:
        return self.read_weight().shape

    @property
    def stored(self) -> Tensor:
        """The weight as the layer stores it."""
        # Not by attribute where it is the layer's own parameter: nn.Module's attributes are slow.
        stored: Tensor | None = self.layer._parameters.get(self.weight_name)
        return getattr(self.layer, self.weight_name) if stored is None else stored

    def read_weight(self) -> Tensor:
        return self.stored

    def add_(self, delta: Tensor) -> None:
        weight = self.read_weight()
        if delta.shape != weight.shape:
            raise MergeError(f"A delta of shape {list(delta.shape)} does not fit a weight of {list(weight.shape)}.")
        wide = torch.promote_types(weight.dtype, delta.dtype)
        if is_transposed(weight):
            weight, delta = weight.mT, delta.mT
        with writing(weight):
            for stored, change in pieces(weight, delta, wide=wide):
                stored.copy_(stored.to(wide).add_(change.to(weight.device, wide)))

    def add_product_(self, b: Tensor, a: Tensor, scaling: float = 1.0) -> None:
        weight = self.read_weight()
        fits = (b.shape[:-1] + a.shape[1:], b.shape[-1]) == (weight.shape, len(a))
        if not (_is(self.add_, DenseLayer.add_) and weight.dim() == 2 and fits):
            super().add_product_(b, a, scaling)
            return
        if is_transposed(weight):
            weight, b, a = weight.mT, a.mT, b.mT
        wide = torch.promote_types(weight.dtype, torch.promote_types(b.dtype, a.dtype))
        a, b = (factor.to(weight.device, wide) for factor in (a, b))
        with writing(weight):
            for stored, rows in pieces(weight, b, wide=wide):
                stored.copy_(stored.to(wide).addmm_(rows, a, alpha=scaling))

    def replace_(self, weight: Tensor) -> None:
        write_(self.read_weight(), weight)

    def exchange_(self, weight: Tensor) -> Tensor:
        """Put a weight that lies in memory as the stored one does into its place; the parameter stays the same one."""
        stored, held = self.stored, self.read_weight().detach()
        new = weight if held.stride() == stored.stride() else weight.mT
        if not (_is(self.replace_, DenseLayer.replace_) and can_take(stored, new)):
            return super().exchange_(weight)
        stored.data = new.detach()
        return held

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def device(self) -> torch.device:
        return self.stored.device


def _is(method: Callable[..., None], function: Callable[..., None]) -> bool:
    """Whether a layer's method is this one: a class that writes in its own way may say so in that method alone."""
    return getattr(method, "__func__", None) is function


def is_dense(layer: nn.Module, name: str, dims: int) -> bool:
    """Whether a layer's own parameter is a plain tensor of floating-point numbers with so many dimensions."""
    weight = layer._parameters.get(name)
    # The exact type: subclasses are quantised, sharded or not yet initialised.
    return type(weight) is nn.Parameter and weight.dtype in DENSE_DTYPES and weight.dim() == dims
