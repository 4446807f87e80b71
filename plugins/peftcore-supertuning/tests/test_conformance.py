"""Super-Tuning keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestSupertuning(LayerMethodTests):
    method = "supertuning"
    configs = (
        {"sparsity": 0.8},
        {"sparsity": 0.5, "select_top": False, "r": 3, "lora_alpha": 4.0, "save_precomputed_indices": False},
        {"sparsity": 0.9, "r": 2, "lora_dropout": 0.1},
    )
