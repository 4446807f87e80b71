"""Parameter-efficient fine-tuning where every method is a plugin.

The public names are those of :mod:`peftcore.public`; what one of them needs is imported, torch with it, when it is
first asked for, so that what needs no torch (:mod:`peftcore.catalog`, most of the command line) starts at once.
Names that are not there are looked up in the installed plugins (see :mod:`peftcore.exports`).
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from peftcore.collector import paused_collector as _paused_collector
from peftcore.public import ROOMS as _ROOMS
from peftcore.public import __getattr__ as _find_public

if TYPE_CHECKING:
    from peftcore.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _ROOMS or name == "__all__":
        return globals().setdefault(name, _find_public(name))
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    with _paused_collector():
        from peftcore.exports import find_export

        return find_export(name)


def __dir__() -> list[str]:
    from peftcore.exports import loaded_exports

    return sorted({*globals(), *_ROOMS, *loaded_exports()})
