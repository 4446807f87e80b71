"""PVeRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestPvera(LayerMethodTests):
    method = "pvera"
    configs = (
        {"r": 3},
        {"r": 16, "projection_prng_key": 7, "save_projection": False, "d_initial": 0.5},
        {"r": 5, "pvera_dropout": 0.1, "generator_seed": 3},
    )
