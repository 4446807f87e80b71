"""Checks of the method's config."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from peftcore import PeftConfig
from peftcore.testing.basis import MethodTests
from peftcore.testing.trials import Case


class ConfigTests(MethodTests):
    """A config is the same after any journey."""

    def test_config_survives_json(self, first_case: Case, tmp_path: Path) -> None:
        """Written and read again, by its own class and by the common one, a config is equal to itself."""
        for options in self.configs:
            config = first_case.config(options)
            values = json.loads(config.to_json_string())
            assert_equal(type(config).from_dict(values), config, "read from JSON")
            assert_equal(PeftConfig.from_dict(values), config, "read from JSON by PeftConfig")
            config.save_pretrained(tmp_path)
            assert_equal(PeftConfig.from_pretrained(tmp_path), config, "read from a file")

    def test_config_can_be_copied_and_sent_to_another_process(self, first_case: Case) -> None:
        """Copied, copied deeply, or pickled as for a worker process, a config is equal to itself."""
        for options in self.configs:
            config = first_case.config(options)
            assert_equal(copy.copy(config), config, "copied")
            assert_equal(copy.deepcopy(config), config, "copied deeply")
            assert_equal(ForkingPickler.loads(ForkingPickler.dumps(config)), config, "pickled")

    def test_using_a_config_does_not_change_it(self, case: Case) -> None:
        """One config object may serve several models."""
        from peftcore import get_peft_model

        config = case.config()
        before = copy.deepcopy(config)
        get_peft_model(case.sample.model(), config)
        assert_equal(config, before, "used for a model")


def assert_equal(config: PeftConfig, original: PeftConfig, journey: str) -> None:
    """Check that a config is equal to another, value by value.

    Args:
        config: What came out.
        original: What went in.
        journey: What happened to it in between.

    Raises:
        AssertionError: It lists what has changed.
    """
    __tracebackhide__ = True
    assert type(config) is type(original), f"A {type(original).__name__}, {journey}, is a {type(config).__name__}."
    changed = [
        f"{field.name} is {now!r} instead of {before!r}"
        for field in fields(original)
        if (now := getattr(config, field.name)) != (before := getattr(original, field.name))
        or (type(now) is not type(before) and field.name not in ("peft_type", "task_type"))
    ]
    assert not changed, (
        f"A {type(original).__name__}, {journey}, is not the same: {'; '.join(changed)}. "
        "JSON has lists, strings, numbers and objects with string keys; does the config bring other types back?"
    )
