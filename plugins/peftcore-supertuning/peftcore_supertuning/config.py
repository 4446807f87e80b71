"""SupertuningConfig: what Super-Tuning can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, dropout_option, option


class SupertuningConfig(LayerConfig, method="supertuning"):
    """Super-Tuning, W' = W + S with S sparse, and Supra, W' = W + S + s · B · A (arXiv 2607.09287).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    sparsity: float = option(0.99, "Share of a weight's entries that do not train.", at_least=0, below=1)
    select_top: bool = option(True, "Train the entries that are largest in magnitude; the smallest if False.")
    r: int | None = option(None, "Rank of B · A (Supra); None leaves it out.", at_least=1)
    lora_alpha: float | None = option(None, "s is lora_alpha / r, or 2 if None.")
    lora_dropout: float = dropout_option("an entry of A's input is dropped")
    init_weights: bool = option(True, "Start with S = 0 and B = 0, so that the model is as it was; False is for tests.")
    save_precomputed_indices: bool = option(
        True, "Whether files hold which entries train; if not, they are found again from the frozen weight."
    )

    def validate(self) -> None:
        """Check the fields, and that there is something to scale."""
        super().validate()
        if self.lora_alpha is not None and self.r is None:
            self.refuse("lora_alpha", "scales B · A, which there is only with a rank: set r, or leave it out")
