"""GraLoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestGralora(LayerMethodTests):
    method = "gralora"
    configs = (
        {"r": 4, "alpha": 2},
        {"r": 4, "alpha": 6, "gralora_k": 4, "hybrid_r": 2},
        {"r": 2, "alpha": 1, "gralora_k": 1, "hybrid_r": 1, "gralora_dropout": 0.1},
    )
