"""RoadConfig: what RoAd can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, option


class RoadConfig(LayerConfig, method="road"):
    """2D rotary adaptation (arXiv 2409.00119).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds, or the group size is odd.
    """

    variant: Literal["road_1", "road_2", "road_4"] = option(
        "road_1", "How many angles and scales a pair of outputs has: 1 (a rotation, scaled), 2 (one per row) or 4."
    )
    group_size: int = option(
        64, "Outputs that are paired among themselves, the first half with the second; divides the outputs.", at_least=2
    )
    init_weights: bool = option(
        True, "Start with rotations by 0, which leave the model as it was; else with random ones, for tests."
    )

    def validate(self) -> None:
        """Check the fields, and that a group consists of pairs."""
        super().validate()
        if self.group_size % 2:
            self.refuse("group_size", f"must be even, since a group consists of pairs, got {self.group_size}")
