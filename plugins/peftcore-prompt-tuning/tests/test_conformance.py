"""Prompt tuning keeps what every prompt method promises."""

from peftcore.testing import PromptMethodTests


class TestPromptTuning(PromptMethodTests):
    method = "prompt_tuning"
    configs = ({"num_virtual_tokens": 3}, {"num_virtual_tokens": 2, "prompt_tuning_init": "SAMPLE_VOCAB"})
