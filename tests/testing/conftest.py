"""Runs the checks of a suite one by one, without pytest, and says which of them fail."""

import inspect
import itertools
from collections import defaultdict

import pytest

from peftcore import register_peft_method, unregister_peft_method
from peftcore.testing.suite import PackagingTests


def run(suite, tmp_path, names=None):
    """Returns {check: messages of its failures}; those of packaging and those marked slow are left out."""
    failures = defaultdict(list)
    for name, check in inspect.getmembers(suite, inspect.isfunction):
        marks = {mark.name: mark for mark in getattr(check, "pytestmark", ())}
        if (
            not name.startswith("test_")
            or hasattr(PackagingTests, name)
            or "slow" in marks
            or (names and name not in names)
        ):
            continue
        for number, arguments in enumerate(arguments_of(suite, check, marks)):
            if "tmp_path" in inspect.signature(check).parameters:
                arguments["tmp_path"] = tmp_path / f"{name}{number}"
            try:
                check(suite(), **arguments)
            except (Exception, pytest.fail.Exception) as error:
                failures[name].append(f"{type(error).__name__}: {error}")
    return dict(failures)


def arguments_of(suite, check, marks):
    choices = {"case": suite.cases(), "first_case": suite.first_cases()}
    if "parametrize" in marks:
        name, values = marks["parametrize"].args
        choices[name] = values
    wanted = [name for name in inspect.signature(check).parameters if name in choices]
    return [dict(zip(wanted, values, strict=True)) for values in itertools.product(*(choices[name] for name in wanted))]


@pytest.fixture
def failures_of(tmp_path):
    """Returns a function that registers an adapter's class as a method and runs the checks of a suite on it."""
    registered = []

    def examine(base_suite, config_cls, adapter_cls, names=None, **said):
        method = register_peft_method(name=config_cls.method, config_cls=config_cls, adapter_cls=adapter_cls)
        registered.append(method.name)
        said = {"method": method.name, "__module__": __name__, **said}
        return run(type("Suite", (base_suite,), said), tmp_path, names)

    yield examine
    for name in registered:
        unregister_peft_method(name)
