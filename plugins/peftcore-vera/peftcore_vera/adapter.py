"""VeraAdapter: two trained vectors around random matrices that all layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.dropout import input_dropout
from peftcore.adapters.projections import ProjectedDelta, ProjectionPair
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
        self.vera_dropout = input_dropout(base, config, "vera_dropout")
        self.vera_lambda_b = nn.Parameter(torch.ones(*base.stack_shape, base.matrix_shape[0]))
        self.vera_lambda_d = nn.Parameter(torch.randn(*base.stack_shape, config.r))
        if config.init_weights:
            nn.init.zeros_(self.vera_lambda_b)
            nn.init.constant_(self.vera_lambda_d, config.d_initial)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return diag(λ_d) · A and diag(λ_b) · B."""
        a, b = self.projections()
        return self.vera_lambda_d.unsqueeze(-1) * a, self.vera_lambda_b.unsqueeze(-1) * b

    def entering(self, x: Tensor) -> Tensor:
        """Return the input after dropout."""
        return self.vera_dropout(x)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return λ_b ∘ B · (λ_d ∘ A · dropout(x)).

        The vectors scale features rather than matrices: training then needs no gradient in a matrix's size.
        """
        if self.base.groups > 1:
            return super().delta_forward(x)
        a, b = self.projections()
        scale = self.base.with_features_last
        features = scale(lambda hidden: hidden * self.vera_lambda_d, self.into_rank(a, self.entering(x)))
        return scale(lambda output: output * self.vera_lambda_b, self.base.apply_pointwise(b, features))
