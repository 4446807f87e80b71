"""LoraConfig: what LoRA can be asked."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option

#: Values of ``init_lora_weights``.
Init = bool | Literal["gaussian", "orthogonal"]


class LoraConfig(LayerConfig, method="lora"):
    """Low-rank adaptation, W' = W + s · B · A (arXiv 2106.09685).

    The scaling is ``s = lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora`` (arXiv 2312.03732).
    Names and defaults are those of HF PEFT.
    :attr:`conv_decomposition` and :attr:`full_matrix_if_smaller` are not in it, and written to files only where used.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    # Fields of variants that this version does not have; whoever asks for one is refused by name.
    foreign_defaults: ClassVar[dict[str, Any]] = {"megatron_core": "megatron.core", "qalora_group_size": 16}

    r: int = option(8, "Rank: how many dimensions Δ may have.", at_least=1, pattern="rank_pattern")
    lora_alpha: float = option(8, "Numerator of the scaling.", pattern="alpha_pattern")
    lora_dropout: float = input_dropout_option()
    use_rslora: bool = option(False, "Divide lora_alpha by the square root of r instead of r.")
    rank_pattern: dict[str, int] = option({}, "Ranks of single layers, by regular expressions on their paths' ends.")
    alpha_pattern: dict[str, float] = option({}, "Values of lora_alpha for single layers, written as rank_pattern.")
    fan_in_fan_out: bool = layout_option()
    init_lora_weights: Init = option(
        True, "How the factors start; all but False, which is for tests, leave the model as it was."
    )
    lora_bias: bool = option(False, "Train a bias with B.")
    conv_decomposition: Literal["channel", "balanced"] = option(
        "channel",
        "How a Conv2d is split: the whole kernel into A, or its rows into B and its columns into A.",
        extension=True,
    )
    full_matrix_if_smaller: bool = option(
        False, "Train Δ itself where it has fewer entries than A and B together.", extension=True
    )

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        odd = next((rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2), None)
        if self.init_lora_weights == "orthogonal" and odd is not None:
            self.refuse("init_lora_weights", f"'orthogonal' splits the rank into halves, so it must be even, got {odd}")
