"""TinyLoraConfig: what TinyLoRA can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option


class TinyLoraConfig(LayerConfig, method="tinylora"):
    """Adaptation by a handful of numbers, W' = W + B · (Σᵢ vᵢ Pᵢ) · A (arXiv 2602.04118; A and B: arXiv 2405.17604).

    B · A is the best approximation of W with rank r, the Pᵢ are random, and neither is trained.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(2, "Rank of the approximation of W.", at_least=1)
    u: int = option(64, "Length of each trained vector v.", at_least=1)
    weight_tying: float = option(
        0.0,
        "Share of the layers that have no v of their own: 0, each has its own; 1, one is for all.",
        at_least=0,
        at_most=1,
    )
    projection_seed: int = option(
        42, "Seed from which the Pᵢ of the first layer are drawn; each following layer's is one higher.", at_least=0
    )
    save_projection: bool = option(
        True, "Whether files hold the Pᵢ; if not, they are drawn again from the seed when a file is loaded."
    )
    init_v_bound: float = option(0.02, "With init_weights='uniform', v starts within ± this.", at_least=0)
    tinylora_dropout: float = input_dropout_option()
    fan_in_fan_out: bool = layout_option()
    init_weights: bool | Literal["uniform"] = option(
        True, "How v starts: True, at zero, so that the model is as it was; 'uniform' or False, at random."
    )
