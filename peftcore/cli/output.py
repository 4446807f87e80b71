"""What commands write: views for people, JSON for programs, complaints on standard error."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from peftcore.views import View, printable

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


def show(view: View) -> None:
    """Write a view: drawn on a terminal, and as plain text, as wide as it needs, anywhere else."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(view.rich())
    else:
        print(view)


def write_json(value: Any) -> None:
    """Write a value as JSON; numbers that JSON lacks become strings."""
    print(json.dumps(_with_legal_numbers(value), indent=2, default=str))


def complain(kind: str, message: str) -> None:
    """Write a message on standard error."""
    print("\n".join(printable(line) for line in f"{kind}: {message}".splitlines()), file=sys.stderr)


def _with_legal_numbers(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _with_legal_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_legal_numbers(item) for item in value]
    return value


def shorter(path: str | Path) -> str:
    """Return a path as the user would type it: relative to where they are, if it is below."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
