"""P-tuning keeps what every prompt method promises."""

from peftcore.testing import PromptMethodTests


class TestPTuning(PromptMethodTests):
    method = "p_tuning"
    configs = (
        {"num_virtual_tokens": 3},
        {"num_virtual_tokens": 2, "encoder_hidden_size": 5},
        {"num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 6},
    )
