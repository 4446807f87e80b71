"""VB-LoRA keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestVBLoRA(LayerMethodTests):
    method = "vblora"
    no_identity_because = "no factor starts with zeros: all are mixed from one bank, which must not be zero"
    configs = (
        {"r": 2, "num_vectors": 6, "vector_length": 4},
        {"r": 3, "num_vectors": 5, "vector_length": 2, "topk": 3, "vblora_dropout": 0.1, "init_vector_bank_bound": 0.3},
        {"r": 2, "num_vectors": 7, "vector_length": 2, "save_only_topk_weights": True},
    )
