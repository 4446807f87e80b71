"""VeraProjections: the random matrices that all layers of an adapter share."""

from __future__ import annotations

from torch import Generator, Tensor

from peftcore.adapters.projections import Projections, kaiming
from peftcore_vera.config import VeraConfig


class VeraProjections(Projections):
    """The frozen A and B of an adapter.

    Both are uniform within ±√(6 / columns) (Kaiming), and the numbers are those of HF PEFT.

    Attributes:
        vera_A: ``[r, largest in · kernel]``.
        vera_B: ``[largest out, r]``.
    """

    vera_A: Tensor
    vera_B: Tensor

    def draw(self, config: VeraConfig, out: int, into: int, generator: Generator) -> dict[str, Tensor]:
        """Return A and B."""
        shapes = {"vera_A": (config.r, into), "vera_B": (out, config.r)}
        return {name: kaiming(shape, generator) for name, shape in shapes.items()}
