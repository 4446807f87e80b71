"""BOFTConfig: what orthogonal butterflies can be asked."""

from __future__ import annotations

from peftcore.adapters.orthogonal import BlockConfig
from peftcore.config import dropout_option, layout_option, option


class BOFTConfig(BlockConfig, method="boft"):
    """Orthogonal butterfly finetuning, W' = s ∘ (W · B₁ · … · B_m) (arXiv 2311.06243).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    count_field, size_field = "boft_block_num", "boft_block_size"

    boft_block_size: int = option(4, "Size of a factor's blocks; 0 to give their number instead.", at_least=0)
    boft_block_num: int = option(0, "Number of a factor's blocks; 0 to give their size instead.", at_least=0)
    boft_n_butterfly_factor: int = option(
        1, "Number of factors m; each joins blocks twice as far apart as the one before.", at_least=1
    )
    boft_dropout: float = dropout_option("training puts the identity into the place of a block")
    init_weights: bool = option(True, "Start with the identity; False, for tests, starts at random.")
    fan_in_fan_out: bool = layout_option()
