"""LN tuning keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestLNTuning(LayerMethodTests):
    method = "ln_tuning"
    # Which layers is all that it can be asked.
    configs = ({}, {"exclude_modules": ["layers.0.target"]}, {"layers_to_transform": 1, "layers_pattern": "layers"})
    # A copy knows nothing of what it copies, so not every kind of layer is needed.
    kinds = frozenset({"linear", "conv2d", "embedding", "module"})
