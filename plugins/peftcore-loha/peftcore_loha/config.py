"""LoHaConfig: what LoHa can be asked."""

from __future__ import annotations

from peftcore.adapters.factored import FactoredConfig
from peftcore.config import option


class LoHaConfig(FactoredConfig, method="loha"):
    """Low-rank Hadamard product, W' = W + (alpha / r) · (B₁ · A₁) ∘ (B₂ · A₂) (FedPara, arXiv 2108.06098).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    init_weights: bool = option(True, "Start with A₂ = 0, so that the model is as it was; False is for tests.")
