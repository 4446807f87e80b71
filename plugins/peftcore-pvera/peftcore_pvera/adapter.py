"""PveraAdapter: features drawn from a distribution that two trained vectors shape around shared random matrices."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS
from peftcore.adapters.dropout import input_dropout
from peftcore.adapters.projections import ProjectedDelta
from peftcore.base_layers import BaseLayer
from peftcore_pvera.config import PveraConfig
from peftcore_pvera.projections import PveraProjections


class PveraAdapter(ProjectedDelta):
    """Probabilistic vector-based random matrix adaptation of one layer (arXiv 2512.07703).

    The output changes by λ_b ∘ B · z with z = μ + ε ∘ exp(½ · v), where ε is standard normal, and μ and v are the
    halves of λ_d ∘ A · x. Outside of training, and wherever the weight is folded, z is μ: then
    Δ = diag(λ_b) · B · diag(λ_d) · A, of A and λ_d the first halves.
    The parameters are ``pvera_lambda_b`` ``[out]`` and ``pvera_lambda_d`` ``[2 · r]``.
    Each group of a convolution has a z of its own; ``in`` counts the channels of one group.
    """

    # Where a layer uses its weight as a whole, there are no features to be drawn.
    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS - {"attention", "parameter"}

    def __init__(self, base: BaseLayer, config: PveraConfig, shared: PveraProjections) -> None:
        super().__init__(base, config, shared)
        self.pvera_dropout = input_dropout(base, config, "pvera_dropout")
        self.sample_at_inference = config.sample_at_inference
        self.generator_seed = config.generator_seed
        self._generator: Generator | None = None
        self.pvera_lambda_b = nn.Parameter(torch.ones(base.matrix_shape[0]))
        self.pvera_lambda_d = nn.Parameter(torch.randn(2 * config.r))
        if config.init_weights:
            nn.init.zeros_(self.pvera_lambda_b)
            nn.init.constant_(self.pvera_lambda_d, config.d_initial)

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer's kind is among :attr:`kinds`, and the layer acts otherwise than by a weight alone."""
        return super().can_adapt(base) and base.additive

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return diag(λ_d) · A for the mean, and diag(λ_b) · B."""
        a, b = self.projections()
        r = b.shape[-1]
        return self.pvera_lambda_d[:r].unsqueeze(-1) * a[:r], self.pvera_lambda_b.unsqueeze(-1) * b

    def entering(self, x: Tensor) -> Tensor:
        """Return the input after dropout."""
        return self.pvera_dropout(x)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return λ_b ∘ B · z, with z for the input after dropout.

        The vectors scale features rather than matrices: training then needs no gradient in a matrix's size.
        """
        a, b = self.projections()
        features = self.into_rank(a.repeat(self.base.groups, 1), self.entering(x))
        latent = self.base.with_features_last(self._latent, features)
        output = self.base.apply_pointwise(b, latent)
        return self.base.with_features_last(lambda change: change * self.pvera_lambda_b, output)

    def _latent(self, features: Tensor) -> Tensor:
        """Return z ``[..., groups · r]`` for A · x ``[..., groups · 2 · r]``."""
        by_group = features.reshape(*features.shape[:-1], self.base.groups, len(self.pvera_lambda_d))
        mean, log_variance = (by_group * self.pvera_lambda_d).chunk(2, -1)
        if self.training or self.sample_at_inference:
            mean = mean + self._noise(mean) * (log_variance / 2).exp()
        return mean.flatten(-2)

    def _noise(self, like: Tensor) -> Tensor:
        if self.generator_seed is None:
            return torch.randn_like(like)
        if self._generator is None or self._generator.device != like.device:
            self._generator = Generator(like.device).manual_seed(self.generator_seed)
        return torch.randn(like.shape, generator=self._generator, device=like.device, dtype=like.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # Not every version of torch can copy a generator; a copy draws from the start.
        return {**self.__dict__, "_generator": None}
