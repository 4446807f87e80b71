"""Any module, for adapters that copy it whole or train its bias, and never ask for its weight."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from peftcore.base_layers.base import BaseLayer
from peftcore.exceptions import UnsupportedLayerError


class OpaqueLayer(BaseLayer):
    """A module of which nothing is known but that it can be called; it may have a ``bias``.

    ``in_features`` and ``out_features`` are 0; whatever concerns the weight raises :class:`UnsupportedLayerError`.
    """

    kind: ClassVar[str] = "module"
    takes_one_input: ClassVar[bool] = False
    in_features: int = 0
    out_features: int = 0

    def _refuse(self) -> NoReturn:
        raise UnsupportedLayerError(
            f"{type(self.layer).__name__} is handled as a whole: its weight can't be read, changed or applied. "
            "Only adapters that copy the module or its bias can stand on it."
        )

    @property
    def weight_shape(self) -> torch.Size:
        self._refuse()

    def read_weight(self) -> Tensor:
        self._refuse()

    def add_(self, delta: Tensor) -> None:
        self._refuse()

    def replace_(self, weight: Tensor) -> None:
        self._refuse()

    def apply(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._refuse()

    def apply_pointwise(self, matrix: Tensor, features: Tensor) -> Tensor:
        self._refuse()

    def _tensors(self) -> itertools.chain[Tensor]:
        return itertools.chain(self.layer.parameters(), self.layer.buffers())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter or buffer, torch's default if there is none."""
        floating = (tensor.dtype for tensor in self._tensors() if tensor.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the first parameter or buffer, the CPU if there is none."""
        own = next(iter(self.layer._parameters.values()), None)  # as of most layers, without a walk
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu")) if own is None else own.device
