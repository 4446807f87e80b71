"""PveraProjections: the random matrices that all layers of an adapter share."""

from __future__ import annotations

from peftcore.adapters.projections import ProjectionPair


class PveraProjections(ProjectionPair):
    """The frozen A and B of an adapter: A has r rows for the mean, and r for the logarithm of the variance.

    Attributes:
        pvera_A: ``[2 · r, largest in · kernel]``.
        pvera_B: ``[largest out, r]``.
    """

    rows_per_rank = 2
