"""Cartridges keep what every prompt method promises."""

from peftcore.testing import PromptMethodTests


class TestCartridge(PromptMethodTests):
    method = "cartridge"
    configs = (
        {"num_virtual_tokens": 3},
        {"num_virtual_tokens": 4, "num_frozen_tokens": 2},
        {"num_virtual_tokens": 2, "num_frozen_tokens": 0},
    )
