"""BOFT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestBoft(LayerMethodTests):
    method = "boft"
    configs = (
        {"boft_block_size": 2},
        {"boft_block_size": 2, "boft_n_butterfly_factor": 2, "boft_dropout": 0.3},
        {"boft_block_size": 0, "boft_block_num": 2},
    )
