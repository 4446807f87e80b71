"""BeftConfig: what BEFT can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, option


class BeftConfig(LayerConfig, method="beft"):
    """Bias-efficient fine-tuning (arXiv 2509.15974).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type.
    """

    init_weights: bool = option(
        True, "Start with zeros, which leave the model as it was; else with random numbers, for tests."
    )
