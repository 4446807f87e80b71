"""RandLoraConfig: what RandLoRA can be asked."""

from __future__ import annotations

from peftcore.adapters.projections import ProjectionConfig
from peftcore.config import input_dropout_option, layout_option, option


class RandLoraConfig(ProjectionConfig, method="randlora"):
    """Full-rank adaptation by random bases, W' = W + s · Σᵢ Bᵢ · diag(λᵢ) · A · diag(γᵢ) (arXiv 2502.00987).

    A and the Bᵢ are random, frozen, and the same for all layers; the scaling is ``s = randlora_alpha / r``.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(32, "Rank of each basis: the smaller it is, the more bases and parameters.", at_least=1)
    sparse: bool = option(False, "Draw bases of -1, 0 and 1, two thirds of them zeros.")
    very_sparse: bool = option(False, "As sparse, but with all entries zero except one of √(smaller size).")
    randlora_dropout: float = input_dropout_option()
    fan_in_fan_out: bool = layout_option()
    randlora_alpha: float = option(640, "Numerator of the scaling; about 20 times the rank.")
    init_weights: bool = option(True, "Start with λ = 0, so that the model is as it was; False is for tests.")
