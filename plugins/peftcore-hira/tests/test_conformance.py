"""HiRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestHira(LayerMethodTests):
    method = "hira"
    configs = ({"r": 2}, {"r": 4, "init_weights": "gaussian"}, {"r": 5, "hira_dropout": 0.1})
