"""OFT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestOft(LayerMethodTests):
    method = "oft"
    configs = (
        {"oft_block_size": 2, "use_cayley_neumann": False, "module_dropout": 0.4},
        {"oft_block_size": 4, "num_cayley_neumann_terms": 7, "block_share": True},
        {"r": 2, "oft_block_size": 0, "coft": True, "eps": 1.0},
    )
