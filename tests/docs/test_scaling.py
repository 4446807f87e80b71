"""docs/scaling.md: its tables are those that follow from its constants."""

import importlib
from types import ModuleType

import pytest

from .pages import DOCS, ROOT

PAGE = (DOCS / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.scaling")


def test_the_tables_follow_from_the_constants(scaling: ModuleType) -> None:
    assert scaling.filled(PAGE, scaling.constants_on(PAGE)) == PAGE


def test_every_constant_is_on_the_page(scaling: ModuleType) -> None:
    assert scaling.constants_on(PAGE).keys() == scaling.CONSTANTS.keys()


def test_adapters_are_as_large_as_their_layers(scaling: ModuleType) -> None:
    shape = scaling.Shape("two", ((3, 5, 1), (10, 1, 2)), rank=4)
    assert (shape.count, shape.nbytes) == (3, 2 * 4 * (8 + 11 + 11))
