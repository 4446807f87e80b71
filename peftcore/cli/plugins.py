"""``peftcore plugins``: every plugin that is installed, and how it fares."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from peftcore.catalog import catalog
from peftcore.cli.output import AsJson, show, write_json
from peftcore.exceptions import PeftCoreError
from peftcore.plugin_status import WRONG_STATES, PluginStatus, plugin_statuses
from peftcore.views import View


def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Import every plugin; exit code 1 if one is broken or conflicting.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every plugin found: its distribution, its methods and its state."""
    statuses = tried() if check else plugin_statuses(catalog.listing)
    if as_json:
        write_json([status._asdict() for status in statuses])
    else:
        show(_view(statuses, check))
    if check and any(status.state in WRONG_STATES for status in statuses):
        raise typer.Exit(1)


def tried() -> list[PluginStatus]:
    """Import every plugin, and return how each fares."""
    from peftcore.registry import registry

    for name in catalog.names():
        with contextlib.suppress(PeftCoreError):
            registry[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is broken stands in the status
        registry.load_extensions()
    return registry.status()


def _view(statuses: Sequence[PluginStatus], checked: bool) -> View:
    rows = [
        (status.distribution, status.version, ", ".join(status.methods) or "(extension)", status.state)
        for status in statuses
    ]
    notes = [
        f"{status.distribution} {status.version} ({status.entry_point}): {status.cause}"
        for status in statuses
        if status.cause
    ]
    if not checked and statuses:
        notes.append("'available' means: not imported yet. --check imports each, and finds what is broken.")
    if not statuses:
        notes.append("Install one, for instance: pip install 'peftcore[all]'")
    count = f"{len(statuses)} plugin{'' if len(statuses) == 1 else 's'}"
    return View(count, ("distribution", "version", "methods", "state"), rows, notes)
