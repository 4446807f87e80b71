"""DeloraConfig: what DeLoRA can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, input_dropout_option, option


class DeloraConfig(LayerConfig, method="delora"):
    """Decoupled low-rank adaptation, W' = W + (λ / r) · B · Ξ · A · diag(‖W‖) (DeLoRA, arXiv 2503.18225).

    Ξ divides each pair of a row of A and a column of B by their lengths, so λ alone says how far the weight moves.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(8, "Rank.", at_least=1, pattern="rank_pattern")
    delora_lambda: float = option(15, "What λ, which trains, starts with.", at_least=0, pattern="lambda_pattern")
    module_dropout: float = input_dropout_option()
    init_weights: bool = option(True, "Start with B = 0, so that the model is as it was; False is for tests.")
    rank_pattern: dict[str, int] = option({}, "Ranks of single layers, by regular expressions on their paths' ends.")
    lambda_pattern: dict[str, float] = option({}, "Starts of λ on single layers, written as rank_pattern.")
