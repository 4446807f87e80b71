"""DEFT and PaRa keep what every method promises."""

from peftcore.testing import LayerMethodTests


class TestDeft(LayerMethodTests):
    method = "deft"
    configs = (
        {"r": 2},
        {"r": 4, "decomposition_method": "qr", "alpha": 6},
        {"r": 3, "deft_dropout": 0.1},
    )


class TestPara(LayerMethodTests):
    method = "deft"
    configs = ({"r": 2, "para": True}, {"r": 3, "para": True, "decomposition_method": "qr"})
    # It is DEFT without R, which shows no more on other layers.
    kinds = ("linear", "conv2d")
    no_identity_because = "PaRa takes a subspace out of the weight and puts nothing in its place"
