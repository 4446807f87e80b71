"""Subcommands of plugins, by the hook ``register_commands``."""

from __future__ import annotations

import warnings
from typing import Any

import typer
import typer.main

from peftcore.registry import registry


def plugin_commands() -> dict[str, Any]:
    """Return the plugins' commands and groups of commands by name; what is broken is named in a warning, and left out.

    Every plugin that is an extension is imported for that.
    """
    cli = typer.Typer()
    registry.register_commands(cli)
    found: dict[str, Any] = {}
    for field in ("registered_commands", "registered_groups"):
        for registered in getattr(cli, field):
            try:
                found.update(_built(field, registered))
            except Exception as error:
                warnings.warn(f"{_described(registered)} is left out: {error}", RuntimeWarning, stacklevel=2)
    return found


def _built(field: str, registered: Any) -> dict[str, Any]:
    """Build one command alone, so that one that can't be built harms no other."""
    alone = typer.Typer(callback=lambda: None)
    getattr(alone, field).append(registered)
    group: Any = typer.main.get_command(alone)
    return dict(group.commands)


def _described(registered: Any) -> str:
    function = getattr(registered, "callback", None)
    where = f" of {function.__module__}" if hasattr(function, "__module__") else ""
    name = registered.name or getattr(function, "__name__", None)
    return f"The command {name!r}{where}" if isinstance(name, str) else f"A command{where}"
