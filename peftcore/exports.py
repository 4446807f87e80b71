"""Re-exports: ``from peftcore import C3AConfig`` finds the name in the plugin that has it.

A plugin offers the names in the ``__all__`` of the module that its entry point names.
The plugin whose method's name fits is asked first; the others are asked only if it does not have the name.
Both spellings give one object; ``from peftcore_c3a import C3AConfig`` is the one that type checkers follow.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from typing import Any

from peftcore.exceptions import PluginError
from peftcore.registry import Registry, registry

_PACKAGE = "peftcore"


def fitting(name: str, methods: Iterable[str]) -> list[str]:
    """Return the methods whose names are contained in ``name``, longest first; case and underscores don't count."""
    plain = _plain(name)
    return sorted((method for method in methods if _plain(method) in plain), key=len, reverse=True)


def find_export(name: str, registry: Registry = registry) -> Any:
    """Return what an installed plugin offers under a name, importing plugins until one has it.

    Raises:
        AttributeError: no plugin offers it; names the first-party plugin to install, if one fits.
        ImportError: the same, said to ``from peftcore import name``.
        PluginError: the plugin whose name fits can't be used.
    """
    if name.startswith("_") or _is_submodule(name):
        # Not for plugins: the import system asks for submodules here before it imports them.
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    installed = dict.fromkeys(claim.name for claim in registry.catalog.listing.method_claims())
    fits = fitting(name, installed)
    failure: PluginError | None = None
    for method in [*fits, *(other for other in registry.catalog.listing.methods if other not in fits)]:
        try:
            plugin = registry.plugin(method)
        except PluginError as error:
            # Somebody else's failure is not this name's business.
            failure = failure or (error if method in fits else None)
            continue
        if name in plugin.exports:
            return getattr(plugin.module, name)
    if failure is not None:
        raise failure
    hint = _hint(name, installed, registry)
    message = f"module {_PACKAGE!r} has no attribute {name!r}, and no installed plugin offers it. {hint}"
    # An import statement replaces the text of an AttributeError by its own, and the reader would not see the hint.
    raise (ImportError if _asked_by_import_statement() else AttributeError)(message)


def loaded_exports(registry: Registry = registry) -> set[str]:
    """Return the names that the plugins imported so far offer; imports none."""
    return {name for plugin in registry.loaded_plugins() if plugin.methods for name in plugin.exports}


def _hint(name: str, installed: Iterable[str], registry: Registry) -> str:
    plugins = registry.catalog.first_party()
    missing = fitting(name, plugins.keys() - set(installed))
    if missing:
        return f"The plugin of {missing[0]!r} is not installed: pip install {plugins[missing[0]]}"
    return f"Installed methods: {', '.join(installed) or 'none'}."


def _asked_by_import_statement() -> bool:
    """Tell whether ``peftcore.__getattr__``, who called :func:`find_export`, was called by ``from peftcore import``."""
    frame = sys._getframe(2)
    caller = frame.f_back
    return frame.f_code.co_name == "__getattr__" and caller is not None and caller.f_code.co_name == "_handle_fromlist"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _is_submodule(name: str) -> bool:
    return importlib.util.find_spec(f"{_PACKAGE}.{name}") is not None
