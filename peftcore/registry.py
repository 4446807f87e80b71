"""The registry: loads a plugin when its method is first used, and keeps what fails apart from the rest.

``registry["c3a"]`` imports the plugin of that method, once, and returns its :class:`~peftcore.method.PeftMethod`.
A method may also be registered from a notebook, by :func:`register_peft_method`, without a package.
The mappings (``PEFT_TYPE_TO_CONFIG_MAPPING`` and its neighbours) are read-only views over both.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftcore import catalog as catalog_room
from peftcore.catalog import Catalog, Claim, canonical
from peftcore.config import PeftConfig
from peftcore.exceptions import PluginError, RegistrationError
from peftcore.method import PeftMethod
from peftcore.plugin_loading import (
    Plugin,
    call_hook,
    describe,
    forgetting_modules_on_failure,
    load_error,
    load_plugin,
    new_manager,
)

if TYPE_CHECKING:
    import pluggy
    from torch import Tensor, nn

    from peftcore.base_layers.base import BaseLayer
    from peftcore.plugin_status import PluginState, PluginStatus


class Registry:
    """All methods, over a catalog; see the module's text.

    Safe to use from several threads: a plugin is imported once, and those who ask meanwhile wait for it.
    """

    default_tuner_cls: type | None = None
    """What ``tuner_cls=None`` of a method stands for; the tuner's room sets it."""

    prompt_tuner_cls: type | None = None
    """The same for a method with an ``encoder_cls``."""

    def __init__(self, catalog: Catalog = catalog_room.catalog) -> None:
        self.catalog = catalog
        self._hooks: pluggy.PluginManager | None = None
        self._in_process: dict[str, PeftMethod] = {}
        self._installed: dict[str, PeftMethod] = {}
        # The rest is kept per plugin (see Claim.plugin), since one plugin may hold several methods.
        self._plugins: dict[tuple[str, str], Plugin] = {}
        self._failures: dict[tuple[str, str], BaseException] = {}
        self._loading: set[tuple[str, str]] = set()
        # One lock per plugin while it is imported, since an import may take long and wait for other imports;
        # the registry's own is held only while its tables change.
        self._import_locks: defaultdict[tuple[str, str], threading.RLock] = defaultdict(threading.RLock)
        self._lock = threading.RLock()
        self._extensions_lock = threading.RLock()
        self._extensions_loaded = False

    # ------------------------------------------------------------------------------------------ methods

    def __getitem__(self, method: str) -> PeftMethod:
        """Return a method by its name or peft_type, in any case; imports its plugin at the first use.

        Raises:
            UnknownMethodError: no installed plugin provides it.
            PluginDisabledError: its plugin is switched off.
            PluginConflictError: several distributions provide it.
            PluginLoadError: its plugin failed, now or at an earlier try.
        """
        if not isinstance(method, str):
            raise self.catalog.absence(method)
        name = canonical(method)
        if name in self._in_process:
            return self._in_process[name]
        if name in self._installed and name in self.catalog:
            return self._installed[name]
        self._load(self.catalog.claim(method))
        return self._installed[name]

    def __contains__(self, method: object) -> bool:
        return method in self.catalog

    def find_config_class(self, method: str) -> type[PeftConfig]:
        """Return the config class of a method, by its name or peft_type; raises what ``registry[method]`` raises."""
        return self[method].config_cls

    def find_tuner_class(self, method: str) -> type:
        """Return the class of a method's tuner, the core's own if it brings none."""
        described = self[method]
        if described.tuner_cls is not None:
            return described.tuner_cls
        if described.encoder_cls is None:
            own, room = "default_tuner_cls", "peftcore.tuner"
        else:
            own, room = "prompt_tuner_cls", "peftcore.prompts.tuner"
        if getattr(self, own) is None:
            importlib.import_module(room)  # which sets it
        tuner_cls: type | None = getattr(self, own)
        assert tuner_cls is not None, "a registry beside the process's own is told which tuners are the core's"
        return tuner_cls

    def register(self, method: PeftMethod | None = None, *, replace: bool = False, **fields: Any) -> PeftMethod:
        """Register a method in this process, without a package; see :func:`register_peft_method`."""
        method = _given_method(method, fields)
        with self._lock:
            if method.name in self.catalog and not replace:
                raise RegistrationError(
                    f"The method {method.name!r} exists already: {self._origin(method.name)}. "
                    "Choose another name, or pass replace=True."
                )
            self._check_prefixes([method])
            self._in_process[method.name] = method
            self.catalog.add(method.name)
        return method

    def unregister(self, name: str) -> None:
        """Remove a method that was registered in this process; see :func:`unregister_peft_method`."""
        name = canonical(name)
        with self._lock:
            if name in self._in_process:
                self.catalog.discard(name)
                del self._in_process[name]
            elif name in self.catalog:
                raise RegistrationError(f"{name!r} was not registered in this process: {self._origin(name)}.")
            else:
                raise self.catalog.absence(name)

    def refresh(self) -> None:
        """Look for plugins again, after an installation: loaded ones stay, failed ones get another try."""
        with self._lock:
            self.catalog.refresh()
            self._failures.clear()
            self._extensions_loaded = False

    # ------------------------------------------------------------------------------------------ plugins

    def plugin(self, method: str) -> Plugin:
        """Return the plugin of an installed method, imported; raises what ``registry[method]`` raises."""
        claim = self.catalog.claim(method)
        self._load(claim)
        return self._plugins[claim.plugin]

    def loaded_plugins(self) -> tuple[Plugin, ...]:
        """Return the plugins imported so far; imports none."""
        return tuple(self._plugins.values())

    def status(self) -> list[PluginStatus]:
        """Report on every installed plugin and on the methods registered in this process; imports none."""
        from peftcore.plugin_status import PluginStatus, plugin_statuses

        records = plugin_statuses(self.catalog.listing, self._state)
        if own := tuple(sorted(self._in_process)):
            records.append(PluginStatus("", "", "", own, "loaded", None))
        return records

    def _state(self, claim: Claim) -> tuple[PluginState, str | None]:
        if claim.plugin in self._plugins:
            return "loaded", None
        if cause := self._failures.get(claim.plugin):
            return "broken", describe(cause)
        return "available", None

    def _load(self, claim: Claim) -> None:
        """Import a claim's plugin and admit what it brings, unless that is done, or raise PluginLoadError."""
        key = claim.plugin
        with self._lock:
            lock = self._import_locks[key]
        with lock:
            if key in self._plugins and (claim.name in self._installed or not claim.is_method):
                return
            if cause := self._failures.get(key):
                raise load_error(claim, cause) from cause
            if key in self._loading:
                raise load_error(claim, RuntimeError("it asks for itself while it is being imported."))
            self._loading.add(key)
            try:
                with forgetting_modules_on_failure(claim):
                    self._admit(self._plugins.get(key) or load_plugin(claim), claim)
            except (Exception, SystemExit) as error:
                self._failures[key] = error
                raise load_error(claim, error) from error
            finally:
                self._loading.discard(key)

    def _admit(self, plugin: Plugin, claim: Claim) -> None:
        """Let a plugin and its methods in, all or none."""
        with self._lock:
            listing = self.catalog.listing
            _check_names(plugin, {other.name for other in listing.method_claims() if other.is_of(claim)})
            # A sibling that is switched off, or that a rival claims too, stays out.
            own = [m for m in plugin.methods if [c.plugin for c in listing.methods.get(m.name, ())] == [claim.plugin]]
            self._check_prefixes(own)
            if not self._manager.is_registered(plugin.implementation):
                self._manager.register(plugin.implementation, name=str(claim))
            self._installed.update({method.name: method for method in own})
            self._plugins[claim.plugin] = plugin

    def _check_prefixes(self, methods: Iterable[PeftMethod]) -> None:
        """Refuse methods that have the prefix of another, of these or of those loaded, unless both allow it."""
        known = {**self._installed, **self._in_process}
        for method in methods:
            known[method.name] = method
            for other in known.values():
                shared = method.shares_prefix and other.shares_prefix
                if other is not method and other.prefix == method.prefix and not shared:
                    raise RegistrationError(
                        f"The prefix {method.prefix!r} of the method {method.name!r} is also that of {other.name!r}. "
                        "Choose another, or set shares_prefix=True in both."
                    )

    def _origin(self, name: str) -> str:
        if name in self._in_process:
            return "it was registered in this process"
        return f"it comes from {' and '.join(map(str, self.catalog.listing.methods[name]))}"

    # -------------------------------------------------------------------------------------------- hooks

    def load_extensions(self) -> None:
        """Import all plugins of the group ``peftcore.extensions``, once; a broken one is named in one warning."""
        if self._extensions_loaded:
            return
        with self._extensions_lock:
            if self._extensions_loaded:
                return
            for claim in self.catalog.listing.extensions:
                try:
                    self._load(claim)
                except PluginError as error:
                    warnings.warn(str(error), RuntimeWarning, stacklevel=2)
            self._extensions_loaded = True

    def adapt_base_layer(self, layer: nn.Module) -> BaseLayer | None:
        """Ask the plugins for their view of a layer; see :func:`peftcore.hookspecs.adapt_base_layer`."""
        answer: BaseLayer | None = self._ask("adapt_base_layer", layer=layer)
        return answer

    def default_target_modules(self, method: str, model_type: str) -> Sequence[str] | None:
        """Return a method's targets in a type of model: a plugin's answer, else the method's own; None without either.

        See :func:`peftcore.hookspecs.default_target_modules`; raises what ``registry[method]`` raises.
        """
        answer: Sequence[str] | None = self._ask(
            "default_target_modules", method=canonical(method), model_type=model_type
        )
        return self[method].default_targets.get(model_type) if answer is None else answer

    def convert_checkpoint(
        self, method: str, state: Mapping[str, Tensor], config: PeftConfig, source: str
    ) -> Mapping[str, Tensor] | None:
        """Ask the plugins to convert a file's tensors; see :func:`peftcore.hookspecs.convert_checkpoint`."""
        answer: Mapping[str, Tensor] | None = self._ask(
            "convert_checkpoint", method=canonical(method), state=state, config=config, source=source
        )
        return answer

    def register_commands(self, cli: Any) -> None:
        """Let each plugin add its subcommands; one that raises is named in a warning, and the others go on."""
        self.load_extensions()
        everyone = self._manager.get_plugins()
        for plugin in self.loaded_plugins():
            others = everyone - {plugin.implementation}
            caller = self._manager.subset_hook_caller("register_commands", others)
            try:
                call_hook(caller, {"cli": cli})
            except Exception as error:
                warnings.warn(f"{describe(error)} Its subcommands are missing.", RuntimeWarning, stacklevel=2)

    @property
    def _manager(self) -> pluggy.PluginManager:
        """What calls the hooks, made when the first is called or the first plugin comes."""
        if self._hooks is None:
            with self._lock:
                self._hooks = self._hooks or new_manager()
        return self._hooks

    def _ask(self, hook: str, **arguments: Any) -> Any:
        if not self._extensions_loaded:
            self.load_extensions()
        caller = getattr(self._manager.hook, hook)
        # Asked once for every layer that is adapted, and mostly there is nobody to answer.
        return call_hook(caller, arguments) if caller.get_hookimpls() else None


def _check_names(plugin: Plugin, declared: set[str]) -> None:
    """Refuse a plugin whose methods are not those that its distribution's entry points say it has."""
    returned = {method.name for method in plugin.methods}
    if unknown := sorted(returned - declared):
        raise RegistrationError(
            f"it registers the method {unknown[0]!r}, for which {plugin.claim.distribution} has no entry point. "
            f"Add `{unknown[0]} = {plugin.claim.value!r}` to the entry points in its group 'peftcore'."
        )
    if missing := sorted(declared - returned):
        raise RegistrationError(
            f"its entry point promises the method {missing[0]!r}, but it registers {', '.join(returned) or 'none'}. "
            "Mark register_peft_method with @hookimpl, and let it return a method of that name."
        )


def _given_method(method: PeftMethod | None, fields: Mapping[str, Any]) -> PeftMethod:
    if method is None:
        try:
            return PeftMethod(**fields)
        except TypeError as error:
            raise RegistrationError(f"These are not the fields of a PeftMethod: {error}") from error
    if fields:
        raise RegistrationError(f"Pass a PeftMethod or its fields, not both; got both and {', '.join(fields)}.")
    if not isinstance(method, PeftMethod):
        raise RegistrationError(f"A method is described by a PeftMethod; got {type(method).__name__}.")
    return method


registry = Registry()
"""The process's one registry."""

PeftConfig.find_class = registry.find_config_class


def register_peft_method(method: PeftMethod | None = None, *, replace: bool = False, **fields: Any) -> PeftMethod:
    """Register a method in this process, from a notebook or a test, without a package.

    Args:
        method: the method, or None if its fields are passed.
        replace: take the place of an existing method of that name; an installed one is hidden, not changed.
        **fields: the fields of :class:`~peftcore.method.PeftMethod`, if no method is passed.

    Returns:
        the method.

    Raises:
        RegistrationError: the method contradicts itself, or its name or prefix is taken. Nothing of it is left.
    """
    return registry.register(method, replace=replace, **fields)


def unregister_peft_method(name: str) -> None:
    """Remove a method that was registered in this process; an installed one that it hid is back.

    Raises:
        UnknownMethodError: there is no such method.
        RegistrationError: the method comes from an installed plugin.
    """
    registry.unregister(name)
