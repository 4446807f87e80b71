"""PEANuT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestPeanut(LayerMethodTests):
    method = "peanut"
    configs = (
        {"r": 2, "act_fn": "tanh"},
        {"r": 3, "depth": 2, "act_fn": "silu", "scaling": 0.7},
        {"r": 4, "depth": 1, "scaling": 2},
    )
