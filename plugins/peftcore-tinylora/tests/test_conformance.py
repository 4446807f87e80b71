"""TinyLoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestTinyLora(LayerMethodTests):
    method = "tinylora"
    configs = (
        {"r": 2, "u": 5},
        {"r": 4, "u": 3, "weight_tying": 0.5, "save_projection": False},
        {"r": 1, "u": 7, "weight_tying": 1.0, "tinylora_dropout": 0.1, "projection_seed": 3},
    )
