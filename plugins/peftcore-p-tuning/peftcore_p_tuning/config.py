"""PromptEncoderConfig: what P-tuning can be asked."""

from __future__ import annotations

import enum

from peftcore.config import dropout_option, option
from peftcore.prompts import PromptConfig


class PromptEncoderReparameterizationType(str, enum.Enum):
    """Which network makes the virtual tokens."""

    MLP = "MLP"
    """Linear layers with ReLU between them, on each token by itself."""
    LSTM = "LSTM"
    """A bidirectional LSTM over the tokens, and linear layers behind it."""


class PromptEncoderConfig(PromptConfig, method="p_tuning"):
    """P-tuning: virtual tokens made by a network that trains, in front of the input (arXiv 2103.10385).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    encoder_reparameterization_type: PromptEncoderReparameterizationType = option(
        PromptEncoderReparameterizationType.MLP, "The network: MLP or LSTM."
    )
    encoder_hidden_size: int | None = option(
        None, "Width of the network's hidden layers; that of a virtual token if None.", at_least=1
    )
    encoder_num_layers: int = option(2, "Layers of the LSTM, or hidden layers of the MLP.", at_least=1)
    encoder_dropout: float = dropout_option("a feature between two layers of the LSTM is dropped")
