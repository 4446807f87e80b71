"""Progress: a line on the terminal when something takes long and somebody is looking."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

#: Seconds that pass before anything is shown.
_LONG = 2.0
#: Seconds between two drawings.
_PAUSE = 0.1
_WIDTH = 24


def progress(items: Collection[T], doing: str, *, at_once: bool = False) -> Iterable[T]:
    """Return the items, and show how far their consumer has come while it works through them.

    Nothing is shown unless it takes longer than two seconds and standard error is a terminal or a notebook.

    Args:
        items: What is worked through.
        doing: What is done, "Merging".
        at_once: Show it from the start, and on whatever standard error is.
    """
    stream = sys.stderr
    if stream is None or not (at_once or _is_looked_at(stream)):
        return items
    return _shown(items, doing, stream, 0.0 if at_once else _LONG)


def _is_looked_at(stream: TextIO) -> bool:
    """Whether a stream is a terminal, or a notebook's, which draws a line anew as a terminal does."""
    return stream.isatty() or type(stream).__module__ == "ipykernel.iostream"


def _shown(items: Collection[T], doing: str, stream: TextIO, after: float) -> Iterator[T]:
    start, drawn, line = time.monotonic(), -math.inf, ""
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - start >= after and now - drawn >= _PAUSE:
                drawn, line = now, _line(doing, done, len(items))
                print(f"\r{line}", end="", file=stream, flush=True)
            yield item
    finally:
        if line:
            print(f"\r{' ' * len(line)}\r", end="", file=stream, flush=True)


def _line(doing: str, done: int, total: int) -> str:
    filled = _WIDTH * done // total
    return f"{doing} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,d} of {total:,d}"
