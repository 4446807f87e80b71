"""MissConfig: what MiSS can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, input_dropout_option, option


class MissConfig(LayerConfig, method="miss"):
    """Matrix shard sharing, W' = W + [D D … D]ᵀ: all shards of the input share one matrix (MiSS, arXiv 2409.15371).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(64, "Length of the shards of the input; with 'bat', side of the weight's blocks.", at_least=1)
    miss_dropout: float = input_dropout_option()
    mini_r: int = option(1, "Outputs after which the shared matrix repeats itself; with 'mini' alone.", at_least=1)
    init_weights: bool | Literal["bat", "mini"] = option(
        True,
        "The form: True, one matrix for all shards; 'mini', which also repeats itself over the outputs; 'bat', blocks "
        "that are multiplied with the weight's. All start at zero; False, for tests, is the first form at random.",
    )

    def validate(self) -> None:
        """Check the fields; one value of ``bias`` has other spellings in files of HF PEFT."""
        if self.bias in ("MiSS_only", "bone_only", "Bone_only"):
            self.bias = "miss_only"
        super().validate()
