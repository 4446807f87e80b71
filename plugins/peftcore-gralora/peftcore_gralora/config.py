"""GraloraConfig: what GraLoRA can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option


class GraloraConfig(LayerConfig, method="gralora"):
    """Granular low-rank adaptation: each of k × k blocks of Δ is low-rank by itself (GraLoRA, arXiv 2505.20355).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(
        32, "Rank: each block has r / gralora_k of it, and all have as many parameters as LoRA.", at_least=1
    )
    hybrid_r: int = option(
        0, "Rank of a low-rank change of the whole weight beside the blocks; 0 for none.", at_least=0
    )
    alpha: float = option(64, "Numerator of the scaling, alpha / (r + hybrid_r).")
    gralora_dropout: float = input_dropout_option()
    gralora_k: int = option(2, "Blocks along each side of the weight; a divisor of both sizes and of r.", at_least=1)
    fan_in_fan_out: bool = layout_option()
    init_weights: bool = option(True, "Start with B = 0, so that the model is as it was; False is for tests.")

    def validate(self) -> None:
        """Check the fields, and that the rank can be shared by the blocks."""
        super().validate()
        if self.r % self.gralora_k:
            self.refuse("gralora_k", f"{self.gralora_k} does not divide r = {self.r}, which a row of blocks shares")
