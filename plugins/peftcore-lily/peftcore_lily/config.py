"""LilyConfig: what Lily can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, option


class LilyConfig(LayerConfig, method="lily"):
    """Low-rank interconnected adaptation across layers (arXiv 2407.09946).

    Layers share factors if one entry of ``target_modules`` means them and they have the same sizes.
    Names and defaults are those of HF PEFT; :attr:`average_over` is not in it, and written to files only where used.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(32, "Rank of the factors.", at_least=1)
    stride_A: int = option(1, "How many consecutive layers share one A.", at_least=1)
    num_B: int = option(2, "How many experts B there are, which all layers share.", at_least=2)
    scaling: float = option(1.0, "Factor of what is added to the output.")
    init_weights: bool = option(
        True, "Start with every B zero, which leaves the model as it was; else with random ones, for tests."
    )
    average_over: Literal["call", "row"] = option(
        "call",
        "What the experts' shares are averaged over: all that a layer is called with, as published, or each row of "
        "the batch alone, so that rows do not depend on each other.",
        extension=True,
    )

    def validate(self) -> None:
        """Check the fields."""
        super().validate()
        if self.ensure_weight_tying:
            self.refuse("ensure_weight_tying", "is not for Lily, whose layers share factors by their names and sizes")
