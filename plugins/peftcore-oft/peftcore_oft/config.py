"""OFTConfig: what orthogonal finetuning can be asked."""

from __future__ import annotations

from peftcore.adapters.orthogonal import BlockConfig
from peftcore.config import dropout_option, layout_option, option


class OFTConfig(BlockConfig, method="oft"):
    """Orthogonal finetuning, W' = W · blockdiag(R₁ … R_D) (arXiv 2306.07280; version 2: arXiv 2506.19847).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    count_field, size_field = "r", "oft_block_size"

    r: int = option(0, "Number of blocks; 0 to give their size instead.", at_least=0)
    oft_block_size: int = option(32, "Size of the blocks; 0 to give their number instead.", at_least=0)
    module_dropout: float = dropout_option("training puts the identity into the place of a block")
    init_weights: bool = option(True, "Start with the identity; False, for tests, starts at random.")
    coft: bool = option(False, "Keep the rotations small: the norm of all blocks' generators within eps.")
    eps: float = option(6e-5, "How far coft lets the rotations go.", above=0)
    block_share: bool = option(False, "Use one block everywhere.")
    use_cayley_neumann: bool = option(
        True, "Compute the rotations by a series without an inverse, orthogonal up to the terms left out."
    )
    num_cayley_neumann_terms: int = option(5, "Terms of the series.", at_least=1)
    fan_in_fan_out: bool = layout_option()
