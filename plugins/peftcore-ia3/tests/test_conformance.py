"""IA3 keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestIA3(LayerMethodTests):
    method = "ia3"
    configs = (
        {"feedforward_modules": []},
        {"feedforward_modules": ["target"]},
        {"feedforward_modules": ["layers.1.target"]},
    )
