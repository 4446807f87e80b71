"""LNTuningConfig: what LN tuning can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig


class LNTuningConfig(LayerConfig, method="ln_tuning"):
    """Tuning of normalization layers (arXiv 2312.11420).

    Which layers is all that can be asked; by default the normalization layers of the model's type.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, or two exclude each other.
    """
