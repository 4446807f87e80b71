"""SHiRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestShira(LayerMethodTests):
    method = "shira"
    configs = ({"r": 2}, {"r": 3, "random_seed": 1}, {"r": 1, "random_seed": 2})
