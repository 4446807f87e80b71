"""RandLoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestRandLora(LayerMethodTests):
    method = "randlora"
    # The default scaling is made for layers with a thousand features.
    configs = (
        {"r": 3, "randlora_alpha": 0.6},
        {"r": 5, "randlora_alpha": 1, "projection_prng_key": 7, "save_projection": False, "randlora_dropout": 0.1},
        {"r": 4, "randlora_alpha": 0.8, "sparse": True},
    )
