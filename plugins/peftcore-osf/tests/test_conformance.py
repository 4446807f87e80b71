"""OSF keeps what every method promises."""

from peftcore.testing import LayerMethodTests


class TestOsf(LayerMethodTests):
    method = "osf"
    configs = (
        {},
        {"effective_rank": 1, "init_weights": None},
        {"effective_rank": 0.7, "project_weights": True},
    )
