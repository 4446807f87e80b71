"""GloraConfig: what GLoRA can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, option


class GloraConfig(LayerConfig, method="glora"):
    """Generalized LoRA, W' = W + W ∘ A + B and b' = b + b ∘ D + E + W · C (arXiv 2306.07967).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(8, "Rank of the tensors that are products of two factors.", at_least=1)
    config_A_B: Literal["lora", "vector", "constant", "none"] = option(
        "lora", "What A and B are: products of factors, a number for each output, one number, or nothing."
    )
    config_C: Literal["lora", "vector", "none"] = option(
        "lora", "What C is: a product of factors, a number for each input, or nothing."
    )
    config_D_E: Literal["vector", "constant", "none"] = option(
        "constant", "What D and E are: a number for each output, one number, or nothing."
    )
    init_weights: bool = option(True, "Start with zeros, so that the model is as it was; False is for tests.")

    def validate(self) -> None:
        """Check the fields, that something trains, and that what D scales does not."""
        super().validate()
        if self.config_A_B == self.config_C == self.config_D_E == "none":
            self.refuse(
                "config_A_B", "nothing trains where config_C and config_D_E are 'none' as well: choose another for one"
            )
        if self.bias != "none" and self.config_D_E != "none":
            self.refuse(
                "bias",
                f"{self.bias!r} trains the biases that D scales: choose config_D_E='none', since a trained bias can be "
                "all that D and E make of it",
            )
