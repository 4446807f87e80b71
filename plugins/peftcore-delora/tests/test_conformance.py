"""DeLoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestDelora(LayerMethodTests):
    method = "delora"
    # The default λ is made for large layers; here it would drown the frozen weight.
    configs = (
        {"r": 2, "delora_lambda": 2},
        {"r": 3, "delora_lambda": 1, "module_dropout": 0.1},
        {"r": 4, "delora_lambda": 3, "rank_pattern": {"1.target": 1}, "lambda_pattern": {"0.target": 0.5}},
    )
