"""VeraConfig: what VeRA can be asked."""

from __future__ import annotations

from peftcore.adapters.projections import PairConfig
from peftcore.config import input_dropout_option


class VeraConfig(PairConfig, method="vera"):
    """Vector-based random matrix adaptation, W' = W + diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454).

    A and B are random, frozen, and the same for all layers.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    vera_dropout: float = input_dropout_option()
