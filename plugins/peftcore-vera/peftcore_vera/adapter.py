"""VeraAdapter: two trained vectors around random matrices that all layers share."""

from __future__ import annotations

from peftcore.adapters.projections import Chain, ProjectedDelta, ProjectionPair
from peftcore.base_layers import BaseLayer
from peftcore_vera.config import VeraConfig


class VeraAdapter(ProjectedDelta):
    """Vector-based random matrix adaptation of one layer: Δ = diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454).

    The parameters are ``vera_lambda_b`` ``[out]`` and ``vera_lambda_d`` ``[r]``; where experts are stacked, each has
    vectors of its own, ``[experts, …]``.
    Δ is a matrix ``[out, in · kernel]``; of a convolution with groups, ``in`` counts the channels of one group.

    Raises:
        ConfigError: Dropout can't act on the layer.
    """

    def __init__(self, base: BaseLayer, config: VeraConfig, shared: ProjectionPair) -> None:
        super().__init__(base, config, shared)
        self.vera_lambda_b, self.vera_lambda_d = self.scales(config)

    def chain(self) -> Chain:
        """Return what Δ is made of."""
        a, b = self.projections()
        return Chain(a, self.vera_lambda_d, b, self.vera_lambda_b)
