"""LoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestLora(LayerMethodTests):
    method = "lora"
    configs = (
        {"r": 2},
        {"r": 4, "lora_alpha": 7, "use_rslora": True, "init_lora_weights": "gaussian"},
        {"r": 6, "lora_bias": True, "lora_dropout": 0.1, "conv_decomposition": "balanced"},
    )
