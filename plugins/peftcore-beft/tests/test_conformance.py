"""BEFT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestBeft(LayerMethodTests):
    method = "beft"
    # There is nothing to choose but the layers, and the checks need an adapter on both of a sample's.
    configs = ({}, {"layers_to_transform": [0, 1]}, {"target_modules": r"layers\.\d\.target"})
