"""LoKr keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestLoKr(LayerMethodTests):
    method = "lokr"
    configs = (
        {"r": 1, "use_effective_conv2d": True},
        {"r": 8, "alpha": 12, "init_weights": "lycoris", "rank_dropout": 0.2, "rank_dropout_scale": True},
        {"r": 1, "alpha": 2, "decompose_both": True, "decompose_factor": 4, "rank_pattern": {"0.target": 3}},
    )
