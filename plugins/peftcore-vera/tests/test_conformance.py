"""VeRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestVera(LayerMethodTests):
    method = "vera"
    configs = (
        {"r": 3},
        {"r": 16, "projection_prng_key": 7, "save_projection": False, "d_initial": 0.5},
        {"r": 5, "vera_dropout": 0.1, "init_weights": True},
    )
