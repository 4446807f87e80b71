"""PveraAdapter: features drawn from a distribution that two trained vectors shape around shared random matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from peftcore.adapters.delta import MATRIX_KINDS
from peftcore.adapters.dropout import input_dropout
from peftcore.adapters.projections import Chain, ProjectedDelta
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
    kinds = MATRIX_KINDS - {"attention", "parameter"}

    def __init__(self, base: BaseLayer, config: PveraConfig, shared: PveraProjections) -> None:
        super().__init__(base, config, shared)
        # Not by the family, whose Δ acts on what is left of the input: here, features are drawn as well.
        self.input_dropout = input_dropout(base, config, "pvera_dropout")
        self.sample_at_inference = config.sample_at_inference
        self.generator_seed = config.generator_seed
        self._generator: Generator | None = None
        self.pvera_lambda_b, self.pvera_lambda_d = self.scales(config)

    @classmethod
    def can_adapt(cls, base: BaseLayer) -> bool:
        """Whether the layer's kind is among :attr:`kinds`, and the layer acts otherwise than by a weight alone."""
        return super().can_adapt(base) and base.additive

    def chain(self) -> Chain:
        """Return what Δ is made of where z is its mean."""
        a, b = self.projections()
        r = b.shape[-1]
        return Chain(a[:r], self.pvera_lambda_d[:r], b, self.pvera_lambda_b)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return λ_b ∘ B · z, with z for the input after dropout."""
        if not (self.training or self.sample_at_inference):
            return super().delta_forward(x)
        (a, b), groups = self.projections(), self.base.groups
        features = self.into_rank(a if groups == 1 else a.repeat(groups, 1), self.entering(x))
        latent = self.base.with_features_last(self._drawn, features)
        return self.scaled(self.base.apply_pointwise(b, latent), self.pvera_lambda_b)

    def _drawn(self, features: Tensor) -> Tensor:
        """Return z ``[..., groups · r]`` for A · x ``[..., groups · 2 · r]``."""
        of_mean, of_log_variance = self.pvera_lambda_d.chunk(2)
        # ½ · v at once: to halve a vector takes no pass over what comes of all tokens.
        scaled = torch.unflatten(features, -1, (self.base.groups, -1)) * torch.cat((of_mean, of_log_variance / 2))
        mean, log_deviation = scaled.chunk(2, -1)
        return torch.addcmul(mean, self._noise(mean), log_deviation.exp()).flatten(-2)

    def _noise(self, like: Tensor) -> Tensor:
        if self.generator_seed is None:
            return torch.randn_like(like)
        if self._generator is None or self._generator.device != like.device:
            self._generator = Generator(like.device).manual_seed(self.generator_seed)
        return torch.randn(like.shape, generator=self._generator, device=like.device, dtype=like.dtype)

    def __getstate__(self) -> dict[str, Any]:
        # Not every version of torch can copy a generator; a copy draws from the start.
        return {**self.__dict__, "_generator": None}
