"""PveraConfig: what PVeRA can be asked."""

from __future__ import annotations

from peftcore.adapters.projections import ProjectionConfig
from peftcore.config import dropout_option, layout_option, option


class PveraConfig(ProjectionConfig, method="pvera"):
    """Probabilistic vector-based random matrix adaptation (arXiv 2512.07703).

    The layer's output changes by λ_b ∘ B · z, where z is drawn from a normal distribution that depends on the input:
    its mean and the logarithm of its variance are the halves of λ_d ∘ A · x.
    A and B are random, frozen, and the same for all layers.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(256, "Rank: entries of z; may be above the layers' sizes.", at_least=1)
    pvera_dropout: float = dropout_option("an entry of the input is dropped")
    d_initial: float = option(0.1, "What λ_d starts with.")
    fan_in_fan_out: bool = layout_option()
    init_weights: bool = option(True, "Start with λ_b = 0, so that the model is as it was; False is for tests.")
    sample_at_inference: bool = option(False, "Draw z outside of training too; otherwise its mean is used there.")
    generator_seed: int | None = option(
        None,
        "Seed of the generator from which each layer draws z; torch's own generator if None.",
        at_least=-(2**63),
        at_most=2**63 - 1,
    )
