"""PSOFT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestPsoft(LayerMethodTests):
    method = "psoft"
    configs = (
        {"r": 3},
        {"r": 4, "use_cayley_neumann": True, "cayley_neumann_eps": 0.9, "ab_svd_init": "pissa_init"},
        {"r": 2, "psoft_orth": False, "psoft_mag_a": False, "psoft_dropout": 0.1, "psoft_svd": "lowrank"},
    )
