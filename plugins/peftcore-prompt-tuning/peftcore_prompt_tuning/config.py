"""PromptTuningConfig: what prompt tuning can be asked."""

from __future__ import annotations

import enum
from typing import Any

from peftcore.config import option
from peftcore.prompts import PromptConfig


class PromptTuningInit(str, enum.Enum):
    """Where the virtual tokens start."""

    RANDOM = "RANDOM"
    """At random numbers."""
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    """At tokens drawn from the model's vocabulary."""
    TEXT = "TEXT"
    """At the tokens of a text."""


class PromptTuningConfig(PromptConfig, method="prompt_tuning"):
    """Prompt tuning: virtual tokens that train, in front of the input (arXiv 2104.08691).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    prompt_tuning_init: PromptTuningInit = option(
        PromptTuningInit.RANDOM, "Where the tokens start: RANDOM, SAMPLE_VOCAB or TEXT."
    )
    prompt_tuning_init_text: str | None = option(None, "The text for TEXT; repeated or cut to the number of tokens.")
    tokenizer_name_or_path: str | None = option(None, "The tokenizer for TEXT.")
    tokenizer_kwargs: dict[str, Any] | None = option(None, "Keywords for loading the tokenizer.")

    def validate(self) -> None:
        """Check the fields, and that a text comes with its tokenizer."""
        super().validate()
        if self.prompt_tuning_init == "TEXT":
            self.require("prompt_tuning_init_text", "tokenizer_name_or_path", because=" with prompt_tuning_init='TEXT'")
        elif self.tokenizer_kwargs:
            self.refuse("tokenizer_kwargs", "goes with prompt_tuning_init='TEXT' alone")
