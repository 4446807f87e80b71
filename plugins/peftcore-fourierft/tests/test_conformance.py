"""FourierFT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestFourierFT(LayerMethodTests):
    method = "fourierft"
    # The default scaling is made for layers of a thousand features.
    configs = (
        {"n_frequency": 4, "scaling": 20},
        {"n_frequency": 6, "random_loc_seed": 5, "scaling": 40, "init_weights": True},
        {"n_frequency": 3, "scaling": 25, "n_frequency_pattern": {"1.target": 5}},
    )
    no_identity_because = "the spectrum starts at random, unless init_weights is True"
