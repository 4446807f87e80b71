"""A folder that appears whole or not at all, and never in the place of another."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftcore.exceptions import OutputError


def check_new(target: Path) -> None:
    """Check that a folder can be made here.

    Raises:
        OutputError: Something is there, or the folder to hold it is not.
    """
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target} exists already, and nothing is written over. Name another folder, or remove it.")
    if not target.absolute().parent.is_dir():
        raise OutputError(f"{target.absolute().parent} is no folder. Make it first, or name another one.")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Give a folder beside the target to write into; it gets the target's name when the block is done.

    Raises:
        OutputError: As :func:`check_new`, and what the disk refuses. Nothing is left.
    """
    check_new(target)
    made: Path | None = None
    try:
        made = target.absolute().parent / f".{target.name}.{secrets.token_hex(8)}"
        made.mkdir()
        yield made
        check_new(target)  # somebody may have been here meanwhile, and an empty folder would be replaced in silence
        made.rename(target)
    except OSError as error:
        raise OutputError(f"{target} can't be written: {error.strerror or error}.") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
