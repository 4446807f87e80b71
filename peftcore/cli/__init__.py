"""The ``peftcore`` command; needs the extra ``peftcore[cli]``.

Each command is a function in a module of its own, made into a command by :mod:`peftcore.cli.app`.
Torch, and the rooms that need it, are imported by the commands that work with them, and not before.
"""

import sys


def main() -> None:
    """Run the command, or say how to install what it needs."""
    try:
        from peftcore.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(f"Error: the command needs {error.name}: pip install 'peftcore[cli]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="peftcore")
