"""WaveFT keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestWaveFT(LayerMethodTests):
    method = "waveft"
    # The default scaling is made for layers of a thousand features.
    configs = (
        {"n_frequency": 12, "scaling": 1.5},
        {
            "n_frequency": 9,
            "wavelet_family": "db3",
            "random_loc_seed": 5,
            "scaling": 2,
            "boundary": "periodization",
            "proportional_parameters": True,
        },
        {"n_frequency": 7, "use_idwt": False, "scaling": 1, "n_frequency_pattern": {"1.target": 5}},
    )
