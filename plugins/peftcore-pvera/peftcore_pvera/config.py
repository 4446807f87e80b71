"""PveraConfig: what PVeRA can be asked."""

from __future__ import annotations

from peftcore.adapters.projections import PairConfig
from peftcore.config import dropout_option, option


class PveraConfig(PairConfig, method="pvera"):
    """Probabilistic vector-based random matrix adaptation (arXiv 2512.07703).

    The layer's output changes by λ_b ∘ B · z, where z is drawn from a normal distribution that depends on the input:
    its mean and the logarithm of its variance are the halves of λ_d ∘ A · x.
    A and B are random, frozen, and the same for all layers.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    pvera_dropout: float = dropout_option("an entry of the input is dropped")
    sample_at_inference: bool = option(False, "Draw z outside of training too; otherwise its mean is used there.")
    generator_seed: int | None = option(
        None,
        "Seed of the generator from which each layer draws z; torch's own generator if None.",
        at_least=-(2**63),
        at_most=2**63 - 1,
    )
