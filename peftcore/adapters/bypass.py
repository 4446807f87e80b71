"""Bypass: what depends on the input, beside the layer; the family of routed and gated methods."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from peftcore.adapters.base import Adapter, Below
from peftcore.base_layers.base import BaseLayer


class Bypass(Adapter):
    """A change of the output that depends on the input, so that no weight can hold it.

    The author writes :meth:`change`, and says ``commutes = True`` where it depends on the input alone: then deltas may
    be merged beneath it, wherever it stands among them.
    """

    mergeable: ClassVar[bool] = False
    unmergeable_because: ClassVar[str] = "its effect depends on the input"

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer's kind is among :attr:`kinds`, and the layer acts otherwise than by a weight alone."""
        return super().can_adapt(base) and base.additive

    @abstractmethod
    def change(self, x: Tensor, output: Tensor) -> Tensor:
        """Return what is added to the output.

        Args:
            x: The layer's input, in the adapter's dtype.
            output: What the layer, and the adapters before, put out.
        """

    def forward(self, below: Below, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output below plus the change."""
        output = below(x, *args, **kwargs)
        return output + self.change(self.cast(x), output)
