"""VeraConfig: what VeRA can be asked."""

from __future__ import annotations

from peftcore.adapters.projections import ProjectionConfig
from peftcore.config import dropout_option, layout_option, option


class VeraConfig(ProjectionConfig, method="vera"):
    """Vector-based random matrix adaptation, W' = W + diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454).

    A and B are random, frozen, and the same for all layers.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(256, "Rank: rows of A and columns of B; may be above the layers' sizes.", at_least=1)
    vera_dropout: float = dropout_option("an entry of the input is dropped")
    d_initial: float = option(0.1, "What λ_d starts with.")
    fan_in_fan_out: bool = layout_option()
    init_weights: bool = option(True, "Start with λ_b = 0, so that the model is as it was; False is for tests.")
