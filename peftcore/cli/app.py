"""The application: the commands by name, and what becomes of their errors."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from peftcore.catalog import catalog
from peftcore.cli.convert import convert
from peftcore.cli.doctor import doctor
from peftcore.cli.inspect import inspect
from peftcore.cli.merge import merge
from peftcore.cli.methods import methods
from peftcore.cli.new import new
from peftcore.cli.output import complain
from peftcore.cli.plugins import plugins
from peftcore.cli.targets import targets
from peftcore.exceptions import PeftCoreError


class Commands(TyperGroup):
    """The core's commands, then those of plugins; plugins are asked only for a name or a list that is not the core's.

    What was raised on purpose becomes a line on standard error and exit code 2.
    """

    _of_plugins: dict[str, Any] | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, the plugins' last."""
        own = super().list_commands(ctx)
        return [*own, *sorted(set(self._plugin_commands()).difference(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, None if there is no such one."""
        return super().get_command(ctx, cmd_name) or self._plugin_commands().get(cmd_name)

    def _plugin_commands(self) -> dict[str, Any]:
        if self._of_plugins is None:
            self._of_plugins = {}
            if catalog.listing.extensions:
                with _plain_warnings():
                    self._of_plugins = importlib.import_module("peftcore.cli.extensions").plugin_commands()
        return self._of_plugins

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with _plain_warnings():
            try:
                return super().invoke(ctx)
            except PeftCoreError as error:
                complain("Error", str(error))
                raise typer.Exit(2) from error


class _plain_warnings(warnings.catch_warnings):
    """Shows warnings in the block as lines for people, without the place in the source."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.showwarning = _show_warning
        return entered


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        complain("Warning", str(message))


app = typer.Typer(
    cls=Commands,
    help="Look at plugins, methods and adapters, and change adapters into other forms.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A pipe may have an encoding without the signs that tables are drawn with.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


# In the order in which the help lists them.
app.command()(plugins)
app.command()(methods)
app.command()(targets)
app.command()(inspect)
app.command()(doctor)
app.command()(merge)
app.command()(convert)
app.command()(new)
