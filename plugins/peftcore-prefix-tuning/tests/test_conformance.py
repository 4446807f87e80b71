"""Prefix tuning keeps what every prompt method promises."""

from peftcore.testing import PromptMethodTests


class TestPrefixTuning(PromptMethodTests):
    method = "prefix_tuning"
    configs = (
        {"num_virtual_tokens": 3},
        {"num_virtual_tokens": 2, "prefix_projection": True, "encoder_hidden_size": 5},
        {"num_virtual_tokens": 4, "init_weights": "zero"},
    )
