"""Bars appear when something takes long and somebody is looking."""

import io
from types import SimpleNamespace

import pytest

from peftcore import progress as room
from peftcore.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watched(monkeypatch):
    """A terminal, and a clock that the test turns."""
    clock = [0.0]
    terminal = Terminal()
    monkeypatch.setattr(room, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setattr(room.time, "monotonic", lambda: clock[0])
    return terminal, clock


def work(items, clock, seconds):
    for _ in items:
        clock[0] += seconds


def test_what_is_quick_shows_nothing(watched):
    terminal, clock = watched
    work(progress(range(100), "Working"), clock, 0.01)
    assert terminal.getvalue() == ""


def test_what_takes_long_is_shown_and_wiped_away(watched):
    terminal, clock = watched
    work(progress(range(100), "Working"), clock, 0.5)
    shown = [line for line in terminal.getvalue().split("\r") if line.strip()]
    assert shown[0].startswith("Working [") and shown[0].endswith("4 of 100")
    assert shown[-1].endswith("99 of 100")
    assert terminal.getvalue().endswith(f"\r{' ' * len(shown[-1])}\r")


def test_a_notebook_is_looked_at(watched, monkeypatch):
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(room, "sys", SimpleNamespace(stderr=notebook))
    work(progress(range(100), "Working"), watched[1], 0.5)
    assert "of 100" in notebook.getvalue()


def test_where_nobody_looks_nothing_is_shown(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(room, "sys", SimpleNamespace(stderr=file))
    items = range(100)
    assert progress(items, "Working") is items
    monkeypatch.setattr(room, "sys", SimpleNamespace(stderr=None))
    assert progress(items, "Working") is items
    assert file.getvalue() == ""


def test_who_asks_for_it_sees_it_at_once(watched):
    terminal, clock = watched
    work(progress(range(3), "Working", at_once=True), clock, 0.2)
    assert "0 of 3" in terminal.getvalue()


def test_a_failure_wipes_it_away_too(watched):
    terminal, clock = watched
    items = progress(range(100), "Working", at_once=True)
    with pytest.raises(ZeroDivisionError):
        for _ in items:
            clock[0] += 1
            1 / 0  # noqa: B018
    del items
    assert terminal.getvalue().endswith(" \r")
