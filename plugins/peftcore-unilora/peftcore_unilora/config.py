"""UniLoraConfig: what Uni-LoRA can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option


class UniLoraConfig(LayerConfig, method="unilora"):
    """Low-rank adaptation of all layers by one vector θ, W' = W + B · A (arXiv 2506.00799).

    Each entry of each A and B is an entry of θ, divided by the square root of how many share it; which one is random,
    and every entry of θ is used equally often.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(4, "Rank of the factors.", at_least=1)
    proj_seed: int = option(42, "Seed of the assignment of θ's entries to the factors'.", at_least=0)
    theta_d_length: int = option(256, "Length of θ: all that is trained.", at_least=1)
    unilora_dropout: float = input_dropout_option()
    fan_in_fan_out: bool = layout_option()
    init_theta_d_bound: float = option(
        0.02, "θ starts uniform within ± this; zero would leave all gradients zero.", above=0
    )
    init_weights: bool = option(True, "Start with θ within the bound; False starts with normal numbers.")
    save_indices: bool = option(
        False, "Whether files hold the assignment; if not, it is drawn again from the seed when a file is loaded."
    )
