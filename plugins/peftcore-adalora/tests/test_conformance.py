"""AdaLoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestAdaLora(LayerMethodTests):
    method = "adalora"
    configs = (
        {"init_r": 2, "target_r": 1, "total_step": 10},
        {"init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 7, "use_rslora": True},
        {"init_r": 6, "target_r": 2, "total_step": 10, "lora_alpha": 24, "lora_dropout": 0.1},
    )
