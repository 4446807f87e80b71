"""MiSS keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestMiss(LayerMethodTests):
    method = "miss"
    configs = (
        {"r": 3},
        {"r": 2, "mini_r": 2, "init_weights": "mini"},
        {"r": 2, "init_weights": "bat"},
        {"r": 4, "miss_dropout": 0.1},
    )
