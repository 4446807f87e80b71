"""FRoD keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestFrod(LayerMethodTests):
    method = "frod"
    configs = (
        {"sparse_rate": 0.1},
        {"sparse_rate": 0.2, "save_projection": False, "projection_prng_key": 3},
        {"sparse_rate": 0.05, "frod_dropout": 0.1, "regularization_alpha": 0.1},
    )
