"""``peftcore inspect``: what an adapter directory holds, and what is wrong with it; runs no code from there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcore.cli.output import AsJson, show, write_json
from peftcore.exceptions import CheckpointError
from peftcore.views import View, number

if TYPE_CHECKING:
    from peftcore.cli.adapter_files import AdapterFiles


def inspect(
    directory: Annotated[Path, typer.Argument(help="An adapter directory.", metavar="DIR")],
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if there are problems.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show an adapter's method, writer, base model, options, sizes and norms, and what is wrong with it."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no folder. Name a folder that holds adapter_config.json.")
    from peftcore.cli.adapter_files import read_adapter

    adapter = read_adapter(directory)
    if as_json:
        write_json(asdict(adapter))
    else:
        show(_view(adapter, directory))
    if check and adapter.problems:
        raise typer.Exit(1)


def _view(adapter: AdapterFiles, directory: Path) -> View:
    rows = [
        (
            tensor.name.removeprefix(adapter.prefix),
            " × ".join(map(str, tensor.shape)),
            tensor.dtype,
            f"{tensor.norm:.4g}",
        )
        for tensor in adapter.tensors
    ]
    facts = {
        "method": adapter.method or "not given",
        "written by": adapter.writer,
        "base model": adapter.base_model or "not given",
        "task": adapter.task or "not given",
        "options": ", ".join(f"{name}={value!r}" for name, value in adapter.options.items()) or "defaults",
        "size": f"{number(adapter.parameters)} numbers in {len(adapter.tensors)} tensors, {number(adapter.size)} bytes",
    }
    if adapter.prefix:
        facts["names start"] = adapter.prefix
    problems = [f"Problem: {problem}" for problem in adapter.problems] or ["No problem found."]
    return View(str(directory), ("tensor", "shape", "dtype", "norm"), rows, problems, facts)
