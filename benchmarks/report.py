"""``docs/benchmarks.md``: a section for each subject, each with where its figures come from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

_HEAD = """\
# Benchmarks

peftcore and [HF PEFT](https://github.com/huggingface/peft), side by side in one process.

This page is written by `python -m benchmarks --write`, a section at a time; each section names the command and the
versions that its figures come from.
A cell is the median of the rounds, with the least and the most in brackets.
Each round measures both libraries once, in alternating order, after a warm-up.
The ratio is taken within each round, so its median need not be the ratio of the two medians.
Under 1, peftcore needs less.
Garbage is collected before each measurement, and the collector is on during it.
"""
_PACKAGES = ("torch", "peftcore", "peft", "transformers")


def section(body: str, command: str, seconds: float) -> str:
    """Return a section's text: its body, and how its figures were made."""
    versions = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    python = platform.python_version()
    return (
        f"{body}\n\nCommand: `{command}` ({seconds:,.0f} s).\n"
        f"Versions: {versions}, Python {python}.\nMachine: {_processor()}, {cpu_count()} cores.\n"
    )


def write(sections: Mapping[str, str], titles: Sequence[str], page: Path = PAGE) -> None:
    """Put sections (heading -> text) into the page, in the place of those of the same heading.

    Args:
        sections: What was measured; a heading is a title and the number of threads, with a comma between.
        titles: The order of the sections; those of one title stand by the number of threads.
        page: The file.
    """
    old = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.exists() else []
    kept = dict(entry.split("\n\n", 1) for entry in old)

    def place(heading: str) -> tuple[int, str]:
        title, _, threads = heading.rpartition(", ")
        return titles.index(title), threads

    entries = {**kept, **sections}
    parts = [f"\n## {heading}\n\n{entries[heading]}" for heading in sorted(entries, key=place)]
    page.parent.mkdir(exist_ok=True)
    page.write_text("".join([_HEAD, *parts]), encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(source tree)"


def _processor() -> str:
    """Return the processor's model, without naming the machine."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
