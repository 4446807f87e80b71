"""Uni-LoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestUniLora(LayerMethodTests):
    method = "unilora"
    no_identity_because = "both factors come from one vector, which must not be zero"
    # An entry of the vector is shared by many, and divided by the square root of their number.
    perturbation = 1.0
    configs = (
        {"r": 2, "theta_d_length": 12},
        {"r": 3, "theta_d_length": 7, "proj_seed": 5, "save_indices": True, "init_theta_d_bound": 0.3},
        {"r": 2, "theta_d_length": 100, "unilora_dropout": 0.1, "init_weights": False},
    )
