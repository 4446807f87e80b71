"""Imports one plugin and examines it alone, so that what is wrong with it stays with it.

A plugin is first registered in a plugin manager of its own.
Only if everything about it is right does the registry let it into the one that is asked later, so a refused plugin
has never been there.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from peftcore.catalog import Claim
from peftcore.exceptions import PeftCoreError, PluginError, PluginLoadError, RegistrationError
from peftcore.method import PeftMethod

if TYPE_CHECKING:
    import pluggy


class Plugin(NamedTuple):
    """An imported plugin that passed its examination."""

    claim: Claim
    """The claim by which it was loaded."""
    implementation: object
    """What the entry point names: the module, or an object in it; holds the hook implementations."""
    methods: tuple[PeftMethod, ...]

    @property
    def module(self) -> ModuleType:
        """The module that the entry point names, or holds the object that it names."""
        return sys.modules[self.claim.entry_point.module]

    @property
    def exports(self) -> tuple[str, ...]:
        """The names in the module's ``__all__``."""
        return tuple(getattr(self.module, "__all__", ()))


def new_manager() -> pluggy.PluginManager:
    """Return a plugin manager that knows peftcore's hooks and no plugin."""
    import pluggy  # here, since no hook is called before a method is first used

    from peftcore import hookspecs

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def load_plugin(claim: Claim) -> Plugin:
    """Import a plugin and check its hook implementations and its methods, registering it nowhere.

    Raises:
        RegistrationError: it returned something that is no method.
        Exception: whatever its import or its ``register_peft_method`` raised, or pluggy's validation of its hooks.
    """
    implementation = claim.entry_point.load()
    trial = new_manager()
    trial.register(implementation, name=str(claim))
    trial.check_pending()
    return Plugin(claim, implementation, _methods(trial.hook.register_peft_method()))


def _methods(results: list[object]) -> tuple[PeftMethod, ...]:
    methods: dict[str, PeftMethod] = {}
    for result in results:
        for method in result if isinstance(result, list | tuple) else (result,):
            if not isinstance(method, PeftMethod):
                kind = type(method).__name__
                raise RegistrationError(f"register_peft_method must return PeftMethod, or a list of them; got {kind}.")
            if method.name in methods:
                raise RegistrationError(f"register_peft_method returned two methods named {method.name!r}.")
            methods[method.name] = method
    return tuple(methods.values())


@contextmanager
def forgetting_modules_on_failure(claim: Claim) -> Iterator[None]:
    """Drop what the plugin's package has imported if the block raises, so that a repaired one can be imported."""
    package = claim.value.partition(":")[0].strip().partition(".")[0]
    before = set(sys.modules)
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == package:
                del sys.modules[name]
        raise


def load_error(claim: Claim, cause: BaseException) -> PluginLoadError:
    """Return (not raise) the error that names the plugin that failed, why, and what to do."""
    return PluginLoadError(
        f"The plugin {claim} could not be loaded: {describe(cause)} "
        "The other methods are not affected. Repair or reinstall it, then restart, or call registry.refresh(); "
        f"or switch it off: PEFTCORE_DISABLED_PLUGINS={claim.distribution}."
    )


def describe(cause: BaseException) -> str:
    """Say in one line what was raised."""
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text}" if text else f"{type(cause).__name__}."


def call_hook(caller: pluggy.HookCaller, arguments: Mapping[str, Any]) -> Any:
    """Call a hook, and name the plugin and the hook in whatever an implementation raises.

    Raises:
        PeftCoreError: what an implementation raised on purpose, of the same class.
        PluginError: from anything else that it raised.
    """
    try:
        return caller(**arguments)
    except Exception as error:
        plugin = _raised_by(caller, error)
        if plugin is None:
            raise
        where = f"The hook {caller.name} of the plugin {plugin}"
        if isinstance(error, PeftCoreError):
            error.args = (f"{where}: {error}",)
            raise
        raise PluginError(f"{where} failed: {describe(error)}") from error


def _raised_by(caller: pluggy.HookCaller, error: BaseException) -> str | None:
    """Return the name of the plugin whose implementation is on the error's traceback."""
    names = {getattr(impl.function, "__code__", None): impl.plugin_name for impl in caller.get_hookimpls()}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code in names:
            return names[frame.f_code]
    return None
