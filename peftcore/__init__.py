"""Parameter-efficient fine-tuning where every method is a plugin.

The public names are those of :mod:`peftcore.public`; it is imported, and torch with it, when one is first asked for, so
that what needs no torch (:mod:`peftcore.catalog`, most of the command line) starts at once.
Names that are not there are looked up in the installed plugins (see :mod:`peftcore.exports`).
"""

import gc
import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftcore.public import *  # noqa: F403
    from peftcore.public import __all__ as __all__

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    public = _import_public()
    if name == "__all__" or name in public.__all__:
        return globals().setdefault(name, getattr(public, name))
    from peftcore.exports import find_export

    return find_export(name)


def _import_public() -> ModuleType:
    """Import the public names, the collector held off: amid this it would walk all that torch has made, to no end."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"{__name__}.public")
    finally:
        if was_enabled:
            gc.enable()


def __dir__() -> list[str]:
    from peftcore.exports import loaded_exports
    from peftcore.public import __all__ as names

    return sorted({*globals(), *names, *loaded_exports()})
