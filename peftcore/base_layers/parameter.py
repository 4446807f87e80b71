"""Bare parameters: a weight that its module uses by itself, without a layer around it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftcore.base_layers.base import DenseLayer, innermost, is_dense
from peftcore.exceptions import TargetError, UnsupportedLayerError


class ParameterLayer(DenseLayer):
    """One ``nn.Parameter`` of a module: ``[out, in]``, or stacked experts ``[experts, out, in]``.

    Stacked experts are stored ``[experts, in, out]`` by modules that say ``is_transposed = True`` (transformers' do);
    the canonical weight is a transposed view of those.

    Args:
        owner: The module that holds the parameter, or an adapted layer around it (of two parameters of one module, the
            second view stands on the first one's adapted layer).
        name: The parameter's name in the innermost module.

    Attributes:
        parameter_name: The parameter's name, which tells views of one module apart.
        transposed: Whether the experts are stored ``[experts, in, out]``.

    Raises:
        TargetError: There is no such parameter.
        UnsupportedLayerError: It isn't a plain floating-point matrix, nor a stack of them.
    """

    kind: ClassVar[str] = "parameter"
    bias_name: ClassVar[str] = ""
    additive: bool = False
    takes_one_input: ClassVar[bool] = False

    def __init__(self, owner: nn.Module, name: str) -> None:
        holder, _ = innermost(owner, name)
        stored = holder._parameters.get(name)
        if stored is None:
            raise TargetError(f"{type(holder).__name__} has no parameter {name!r}; {_listed(holder)}.")
        if not (is_dense(holder, name, 2) or is_dense(holder, name, 3)):
            raise UnsupportedLayerError(
                f"Parameter {name!r} of {type(holder).__name__} can't be adapted: it is {list(stored.shape)} of "
                f"{stored.dtype}, and must be a plain floating-point matrix [out, in] or a stack [experts, out, in]."
            )
        self.layer = owner
        self.weight_name = self.parameter_name = name
        self.transposed = stored.dim() == 3 and getattr(holder, "is_transposed", False) is True
        self._measure(stored.shape)

    def _measure(self, stored: torch.Size) -> None:
        *experts, first, second = stored
        self.stack = experts[0] if experts else 1
        self.out_features, self.in_features = (second, first) if self.transposed else (first, second)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape of one expert's weight, ``(out, in)``."""
        return self.out_features, self.in_features

    @property
    def stored(self) -> Tensor:
        holder, _ = innermost(self.layer, self.weight_name)
        stored: Tensor = getattr(holder, self.weight_name)
        return stored

    def read_weight(self) -> Tensor:
        """Return the parameter, a view with the last two dimensions swapped where it is stored transposed."""
        return self.stored.transpose(-1, -2) if self.transposed else self.stored

    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the whole module with this parameter replaced; the output is the module's.

        Args:
            weight: Shaped as the canonical weight; cast to the parameter's dtype.
            *args: What the module is called with.
            **kwargs: What the module is called with.
        """
        _, path = innermost(self.layer, self.weight_name)
        replacement = weight.transpose(-1, -2) if self.transposed else weight
        return functional_call(self.layer, {path: replacement.to(self.dtype)}, args, kwargs)


def _listed(module: nn.Module) -> str:
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    return f"it holds {', '.join(names)}" if names else "it holds none of its own"
