"""HiraConfig: what HiRA can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option

#: Values of ``init_weights``.
Init = bool | Literal["gaussian"] | None


class HiraConfig(LayerConfig, method="hira"):
    """Hadamard high-rank adaptation, W' = W + W ∘ (B · A) (openreview TwJrTz9cRS).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(32, "Rank of B · A; Δ has up to this rank times that of W.", at_least=1, pattern="rank_pattern")
    hira_dropout: float = input_dropout_option()
    rank_pattern: dict[str, int] = option({}, "Ranks of single layers, by regular expressions on their paths' ends.")
    fan_in_fan_out: bool = layout_option()
    init_weights: Init = option(
        True,
        "How the factors start: True (A uniform) and 'gaussian' (A normal) leave the model as it was; "
        "False, which is for tests, does not, nor does None but on embeddings.",
    )
