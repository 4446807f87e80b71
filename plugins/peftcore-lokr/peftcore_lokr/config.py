"""LoKrConfig: what LoKr can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.adapters.factored import FactoredConfig
from peftcore.config import option


class LoKrConfig(FactoredConfig, method="lokr"):
    """Low-rank Kronecker product, W' = W + (alpha / r) · C ⊗ D (LyCORIS, arXiv 2309.14859).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    decompose_both: bool = option(False, "Split C into factors of rank r too, where they are smaller than C.")
    decompose_factor: int = option(
        -1, "Side of C, or the largest divisor below it; -1 makes C and D as equal in size as they can be.", at_least=-1
    )
    rank_dropout_scale: bool = option(False, "Scale up the features that rank_dropout keeps.")
    init_weights: bool | Literal["lycoris"] = option(
        True, "Start with C = 0, or with D = 0 if 'lycoris', so that the model is as it was; False is for tests."
    )

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        if self.decompose_factor == 0:
            self.refuse("decompose_factor", "must be -1 or at least 1, got 0")
