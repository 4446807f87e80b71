"""PrefixTuningConfig: what prefix tuning can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import option
from peftcore.prompts import PromptConfig


class PrefixTuningConfig(PromptConfig, method="prefix_tuning"):
    """Prefix tuning: keys and values that train, in front of every layer's own (arXiv 2101.00190).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    encoder_hidden_size: int | None = option(
        None, "Width of the projection's hidden layer; that of the keys if None.", at_least=1
    )
    prefix_projection: bool = option(
        False, "Make the prefix by a small network from embeddings of the width of the keys."
    )
    init_weights: Literal["zero"] | None = option(
        None, "'zero' starts with a prefix of zeros; without a projection only. None starts at random."
    )

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        if self.init_weights == "zero" and self.prefix_projection:
            self.refuse("init_weights", "'zero' does not go with prefix_projection")
