"""HRA keeps what every method promises."""

import pytest

from peftcore.testing import LayerMethodTests

pytestmark = pytest.mark.filterwarnings("ignore:HRA starts away")


class TestHra(LayerMethodTests):
    method = "hra"
    configs = ({"r": 2}, {"r": 4}, {"r": 6})


class TestHraThatStartsElsewhere(LayerMethodTests):
    method = "hra"
    configs = ({"r": 3}, {"r": 2, "apply_GS": True}, {"r": 5, "apply_GS": True})
    kinds = ("linear",)
    no_identity_because = "an odd number of reflections, or orthogonal ones, can't undo each other"
