"""Trainable tokens keep what every method promises."""

from peftcore.testing import LayerMethodTests


class TestTrainableTokens(LayerMethodTests):
    method = "trainable_tokens"
    configs = (
        {"token_indices": [1, 5, 3]},
        {"token_indices": [11, 0, 7, 3, 4, 5]},
        {"token_indices": list(range(12)), "exclude_modules": ["layers.1.target"]},
    )
