"""C3A keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestC3A(LayerMethodTests):
    method = "c3a"
    configs = (
        {"block_size": 4},
        {"block_size": 2, "init_weights": True},
        {"block_size": 1, "block_size_pattern": {"0.target": 4}, "init_weights": "gaussian"},
    )
    no_identity_because = "the kernels start at random, unless init_weights is True"
    # Δ is what the kernels hold, divided by the number of inputs.
    perturbation = 3.0
