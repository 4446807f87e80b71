"""RoAd keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestRoad(LayerMethodTests):
    method = "road"
    configs = (
        {"variant": "road_1", "group_size": 2},
        {"variant": "road_2", "group_size": 4},
        {"variant": "road_4", "group_size": 4},
    )
