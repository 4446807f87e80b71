"""LoHa keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestLoHa(LayerMethodTests):
    method = "loha"
    configs = (
        {"r": 2},
        {"r": 3, "alpha": 5, "use_effective_conv2d": True},
        {"r": 4, "alpha": 2, "rank_pattern": {"1.target": 1}, "alpha_pattern": {"0.target": 3}, "rank_dropout": 0.2},
    )
