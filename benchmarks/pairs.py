"""Paired measurements, and the tables they are shown in.

A machine is not the same from one minute to the next: clocks change, neighbours come and go.
So every round measures each side once, rounds alternate the order of the sides, and the figure that counts is the ratio
within a round.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

#: What one measurement of one side gave: quantity -> value, in seconds, bytes or pieces.
Quantities = Mapping[str, float]
#: One measurement of every side: side -> quantities.
Round = Mapping[str, Quantities]

#: The two libraries, by the name under which they are imported.
SIDES = ("peftcore", "peft")

#: What a value in seconds, bytes or pieces is multiplied with, to be shown in a unit.
UNITS = {"s": 1.0, "ms": 1e3, "µs": 1e6, "KiB": 1 / 1024, "%": 1e2, "modules": 1.0, "times": 1.0}


def elapsed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that ``work`` takes, and its result.

    Garbage of earlier work is collected first; the collector then runs as it does for users. The result is returned so
    that taking it down is not part of the time.
    """
    gc.collect()
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def median_seconds(
    work: Callable[[], object], for_seconds: float, *, at_least: int = 5, prepare: Callable[[], object] = lambda: None
) -> float:
    """Repeat a short piece of work for a while and return the median of its seconds; ``prepare`` is not timed."""
    gc.collect()
    times: list[float] = []
    while len(times) < at_least or sum(times) < for_seconds:
        prepare()
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times)


def rounds(sides: Mapping[str, Callable[[], Quantities]], count: int, *, label: str, warmup: int = 1) -> list[Round]:
    """Measure every side ``count`` times, in alternating order, after ``warmup`` rounds that do not count.

    Args:
        sides: Side -> one whole measurement of it, set-up included.
        count: Rounds that count.
        label: What the progress lines on stderr call this.
        warmup: Rounds thrown away.
    """
    found: list[Round] = []
    for number in range(-warmup, count):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        measured = {side: sides[side]() for side in order}
        if number >= 0:
            found.append(measured)
        shown = f"round {number + 1} of {count}" if number >= 0 else "warm-up"
        print(f"  {label}: {shown}", file=sys.stderr, flush=True)
    return found


def libraries() -> dict[str, ModuleType]:
    """Return both libraries, by their names."""
    return {side: importlib.import_module(side) for side in SIDES}


def series(found: Sequence[Round], side: str, quantity: str, per: float = 1.0) -> list[float]:
    """Return one quantity of one side, round by round, divided by ``per``."""
    return [round_[side][quantity] / per for round_ in found]


def over(found: Sequence[Round], side: str, base: str, quantity: str) -> list[float]:
    """Return by how much a side exceeds another in each round."""
    pairs = zip(series(found, side, quantity), series(found, base, quantity), strict=True)
    return [value - other for value, other in pairs]


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return ``value / other`` pair by pair."""
    return [value / other for value, other in zip(values, others, strict=True)]


@dataclass(frozen=True)
class Row:
    """One quantity of both libraries.

    Args:
        what: What was measured.
        unit: One of :data:`UNITS`.
        values: Side -> its values, round by round.
        to_reach: The target, in words.
    """

    what: str
    unit: str
    values: Mapping[str, Sequence[float]]
    to_reach: str = ""

    def cells(self) -> list[str]:
        """Return the row's texts, in the order of :data:`HEADER`."""
        scale = UNITS[self.unit]
        ours, theirs = (self.values[side] for side in SIDES)
        return [
            self.what,
            self.unit,
            spread(theirs, scale),
            spread(ours, scale),
            spread(ratios(ours, theirs)) if all(theirs) else "-",
            self.to_reach,
        ]


HEADER = ("what", "unit", "HF PEFT", "peftcore", "peftcore / HF PEFT", "to reach")


def paired(what: str, unit: str, found: Sequence[Round], quantity: str, *, per: float = 1, to_reach: str = "") -> Row:
    """Return the row of one quantity, divided by ``per``, as measured for both libraries."""
    return Row(what, unit, {side: series(found, side, quantity, per) for side in SIDES}, to_reach)


@dataclass(frozen=True)
class Table:
    """Rows under a caption (a sentence in markdown, or nothing)."""

    rows: Sequence[Row]
    caption: str = ""

    def markdown(self) -> str:
        """Return the table in markdown."""
        return Grid(HEADER, [row.cells() for row in self.rows], self.caption).markdown()


@dataclass(frozen=True)
class Grid:
    """Rows of texts under a header and a caption, for what compares in another way than :class:`Table` does."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    caption: str = ""

    def markdown(self) -> str:
        """Return the table in markdown, its columns aligned so that it also reads well on a terminal."""
        lines = [self.header, *self.lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * width for width in widths]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        table = "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])
        return f"{self.caption}\n\n{table}" if self.caption else table


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Return ``median (least to most)``, or one figure where all values are the same."""
    low, middle, high = (digits(value * scale) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def digits(value: float) -> str:
    """Return a number with three significant digits, whole numbers in full."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.2g}"
