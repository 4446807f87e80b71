"""GLoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestGlora(LayerMethodTests):
    method = "glora"
    configs = (
        {"r": 2},
        {"r": 3, "config_C": "none", "config_D_E": "none"},
        {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
    )
