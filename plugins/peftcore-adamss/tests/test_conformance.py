"""AdaMSS keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestAdamss(LayerMethodTests):
    method = "adamss"
    configs = (
        {"num_subspaces": 3},
        {"r": 4, "num_subspaces": 2, "subspace_rank": 2, "random_seed": 3},
        {"r": 3, "num_subspaces": 4, "subspace_rank": 3, "use_dynamic_rank": True, "svd_threshold": 0.3},
    )
