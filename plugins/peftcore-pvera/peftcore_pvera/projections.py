"""PveraProjections: the random matrices that all layers of an adapter share."""

from __future__ import annotations

from torch import Generator, Tensor

from peftcore.adapters.projections import Projections, kaiming
from peftcore_pvera.config import PveraConfig


class PveraProjections(Projections):
    """The frozen A and B of an adapter.

    Both are uniform within ±√(6 / columns) (Kaiming), and the numbers are those of HF PEFT.

    Attributes:
        pvera_A: ``[2 · r, largest in · kernel]``: r rows for the mean, and r for the logarithm of the variance.
        pvera_B: ``[largest out, r]``.
    """

    pvera_A: Tensor
    pvera_B: Tensor

    def draw(self, config: PveraConfig, out: int, into: int, generator: Generator) -> dict[str, Tensor]:
        """Return A and B."""
        shapes = {"pvera_A": (2 * config.r, into), "pvera_B": (out, config.r)}
        return {name: kaiming(shape, generator) for name, shape in shapes.items()}
