"""TrainableTokensConfig: which tokens train."""

from __future__ import annotations

from peftcore.config import LayerConfig, option


class TrainableTokensConfig(LayerConfig, method="trainable_tokens"):
    """Training of the rows of some tokens in an embedding, and in the output layer that shares its weight.

    By default it is the model's input embedding; several targets train rows of the same tokens each.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, or a token is negative or given twice.
    """

    token_indices: list[int] = option([], "Indices of the tokens to train, each once.")
    init_weights: bool = option(True, "Start with the rows as they are; else with random ones, for tests.")

    def validate(self) -> None:
        """Check the fields, and that each token is given once."""
        super().validate()
        tokens = self.token_indices
        if len(set(tokens)) != len(tokens) or min(tokens, default=0) < 0:
            self.refuse("token_indices", f"must be distinct indices of tokens, got {tokens!r}")
