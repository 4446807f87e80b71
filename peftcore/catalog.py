"""Which methods are installed, read from entry points without importing any plugin.

A plugin is a distribution with entry points in the group ``peftcore``, one per method, named as the method::

    [project.entry-points.peftcore]
    c3a = "peftcore_c3a"

A distribution that has no method of its own stands in the group ``peftcore.extensions``.
A method that had another name once, under which files of it are about, says so in ``peftcore.former_names``::

    [project.entry-points."peftcore.former_names"]
    old = "new"

The functions here are pure, over entry points; :class:`Catalog` keeps what they found until it is refreshed.
Metadata is read only where an answer needs it, since reading it costs more than listing the entry points.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from peftcore.exceptions import PeftCoreError, PluginConflictError, PluginDisabledError, UnknownMethodError

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

METHODS_GROUP = "peftcore"
EXTENSIONS_GROUP = "peftcore.extensions"
FORMER_NAMES_GROUP = "peftcore.former_names"
DISABLED_VARIABLE = "PEFTCORE_DISABLED_PLUGINS"

_CORE = "peftcore"
_METHOD_NAME = r"[a-z][a-z0-9]*(_[a-z0-9]+)*"
# The core's extras are generated from its plugins: ``peftcore-<x>>=0.1; extra == "<x>"``.
_EXTRA = r"""^\s*(?P<distribution>[\w.-]+).*;.*\bextra\s*==\s*['"](?P<extra>[\w.-]+)['"]"""


# ------------------------------------------------------------------------------------------------ names


def canonical(name: str) -> str:
    """Return the one spelling that is compared: lower case, with ``_`` for ``-`` and ``.``."""
    return re.sub(r"[-_.]+", "_", name.strip()).lower()


def name_problem(name: object) -> str | None:
    """Say what keeps ``name`` from being a method's name, or None if nothing does."""
    if isinstance(name, str) and re.fullmatch(_METHOD_NAME, name):
        return None
    return f"{name!r} is no method name: one is made of lower-case letters and digits, with single '_' between them"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of the ``known`` names that look like ``name``, nearest first."""
    return difflib.get_close_matches(canonical(name), sorted(known), n=3, cutoff=0.5)


def first_party_plugins(requirements: Iterable[str]) -> dict[str, str]:
    """Return {method: distribution} for the plugins that the core's own requirements name as extras.

    ``peftcore-<x>; extra == "<x>"`` is one; an extra that stands for anything else is not.
    """
    matches = (re.match(_EXTRA, requirement) for requirement in requirements)
    found = (match.groupdict() for match in matches if match)
    return {
        canonical(line["extra"]): line["distribution"]
        for line in found
        if canonical(line["distribution"]) == canonical(f"{_CORE}-{line['extra']}")
    }


# ----------------------------------------------------------------------------------------------- claims


class Claim:
    """One entry point of one distribution, which says: the method of this name is mine."""

    def __init__(self, entry_point: EntryPoint) -> None:
        self.entry_point = entry_point

    @property
    def name(self) -> str:
        """The entry point's name: the method's, or what an extension calls itself."""
        return self.entry_point.name

    @property
    def value(self) -> str:
        """The object reference that is loaded, ``package.module`` or ``package.module:object``."""
        return self.entry_point.value

    @property
    def is_method(self) -> bool:
        """Whether it claims a method, rather than being an extension."""
        return self.entry_point.group == METHODS_GROUP

    @property
    def plugin(self) -> tuple[str, str]:
        """What tells plugins apart: (distribution, object reference); claims of one plugin are loaded together."""
        return canonical(self.distribution), self.value

    def is_of(self, other: Claim) -> bool:
        """Tell whether another claim is of the same plugin; reads no metadata where the object references differ."""
        return self.value == other.value and self.plugin == other.plugin

    @functools.cached_property
    def distribution(self) -> str:
        """The distribution's name; reads its metadata."""
        return self._metadata("Name") or "(unknown distribution)"

    @functools.cached_property
    def version(self) -> str:
        """The distribution's version; reads its metadata."""
        return self._metadata("Version") or "(unknown version)"

    def _metadata(self, field: str) -> str | None:
        try:
            return self.entry_point.dist.metadata[field]  # type: ignore[union-attr]
        except (AttributeError, KeyError, OSError, TypeError):
            # A damaged installation still has to be named somehow, in the very message that reports it.
            return None

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (entry point {self.name} = {self.value})"


class Finding(NamedTuple):
    """A claim that can't stand, and why."""

    claim: Claim
    problem: str


class Listing(NamedTuple):
    """What the installed entry points say."""

    methods: Mapping[str, tuple[Claim, ...]]
    """By method name; more than one claim means rivals."""
    extensions: tuple[Claim, ...]
    disabled: tuple[Claim, ...]
    """Methods' and extensions' claims that :data:`DISABLED_VARIABLE` switches off."""
    former_names: Mapping[str, str]
    """By a name that a method had once: the name that it has now."""
    findings: tuple[Finding, ...]

    def method_claims(self) -> tuple[Claim, ...]:
        """Return every claim to a method, disabled and rival ones too."""
        enabled = (claim for claims in self.methods.values() for claim in claims)
        return (*enabled, *(claim for claim in self.disabled if claim.is_method))


def disabled_names(variable: str) -> frozenset[str]:
    """Return the names in a comma-separated list of methods and distributions, in canonical spelling."""
    return frozenset(canonical(name) for name in variable.split(",") if name.strip())


def is_disabled(claim: Claim, disabled: Collection[str]) -> bool:
    """Tell whether the claim's own name or its distribution is among the ``disabled`` canonical names."""
    return bool(disabled) and (canonical(claim.name) in disabled or canonical(claim.distribution) in disabled)


def one_per_distribution(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Return the claims to one name, keeping each distribution's first.

    The same distribution may lie on ``sys.path`` twice (an editable install and a wheel); Python imports the first.
    """
    claims = tuple(claims)
    if len(claims) < 2:
        return claims
    first: dict[str, Claim] = {}
    for claim in claims:
        first.setdefault(canonical(claim.distribution), claim)
    return tuple(first.values())


def list_plugins(entry_points: Iterable[EntryPoint], disabled: Collection[str] = ()) -> Listing:
    """Sort entry points into methods, extensions, disabled ones, former names and findings.

    Args:
        entry_points: of any group; those of other groups are passed over.
        disabled: canonical names of methods, extensions or distributions (see :func:`disabled_names`).
    """
    methods: dict[str, list[Claim]] = {}
    extensions: dict[str, list[Claim]] = {}
    switched_off: list[Claim] = []
    former_names: dict[str, str] = {}
    findings: list[Finding] = []
    for claim in map(Claim, entry_points):
        group = claim.entry_point.group
        if group == FORMER_NAMES_GROUP:
            former_names[canonical(claim.name)] = canonical(claim.value)
        if group not in (METHODS_GROUP, EXTENSIONS_GROUP):
            continue
        if is_disabled(claim, disabled):
            switched_off.append(claim)
        elif group == EXTENSIONS_GROUP:
            extensions.setdefault(claim.value, []).append(claim)
        elif problem := name_problem(claim.name):
            findings.append(Finding(claim, problem))
        else:
            methods.setdefault(claim.name, []).append(claim)
    return Listing(
        methods={name: one_per_distribution(methods[name]) for name in sorted(methods)},
        extensions=tuple(claims[0] for claims in extensions.values()),
        disabled=tuple(switched_off),
        former_names=former_names,
        findings=tuple(findings),
    )


# ---------------------------------------------------------------------------------------------- catalog


def installed_entry_points() -> Iterable[EntryPoint]:
    """Return the entry points of all installed distributions, of all groups."""
    import importlib_metadata  # here, since the first question about a method is often not asked for long

    return importlib_metadata.entry_points()


class Catalog:
    """The methods that can be asked for: those installed and those registered in this process.

    Args:
        find: returns the installed entry points, of all groups.
        environ: where :data:`DISABLED_VARIABLE` is read, at the first question and at every refresh.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[EntryPoint]] = installed_entry_points,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._find = find
        self._environ = environ
        self._listing: Listing | None = None
        self._in_process: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def listing(self) -> Listing:
        """What is installed, scanned at the first question."""
        if self._listing is None:
            with self._lock:
                if self._listing is None:
                    self._listing = self._scan()
        return self._listing

    def _scan(self) -> Listing:
        return list_plugins(self._find(), disabled_names(self._environ.get(DISABLED_VARIABLE, "")))

    def refresh(self) -> None:
        """Look again, after an installation or a change of :data:`DISABLED_VARIABLE`."""
        importlib.invalidate_caches()
        listing = self._scan()
        with self._lock:
            self._listing = listing

    @property
    def in_process(self) -> frozenset[str]:
        """Names of the methods that were registered in this process, without a package."""
        return self._in_process

    def add(self, name: str) -> None:
        """List a method that was registered in this process; it hides an installed one of the same name."""
        self._in_process |= {name}

    def discard(self, name: str) -> None:
        """Take an in-process method off the list; one that is not on it is passed over."""
        self._in_process -= {name}

    def names(self) -> tuple[str, ...]:
        """Return the names of all methods that can be asked for, sorted; disabled ones are left out."""
        return tuple(sorted(self._in_process.union(self.listing.methods)))

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        name = canonical(name)
        return name in self._in_process or name in self.listing.methods

    def current_name(self, name: str) -> str:
        """Return the name that a method has now, for one that a file has; in canonical spelling."""
        key = canonical(name)
        return key if key in self else self.listing.former_names.get(key, key)

    def claim(self, name: str) -> Claim:
        """Return the one claim to an installed method's name, in any case.

        Raises:
            UnknownMethodError: nothing installed has the name.
            PluginDisabledError: what has it is switched off.
            PluginConflictError: several distributions have it.
        """
        claims = self.listing.methods.get(canonical(name), ())
        if not claims:
            raise self.absence(name)
        if len(claims) > 1:
            raise PluginConflictError(
                f"The method {canonical(name)!r} is claimed by {' and by '.join(map(str, claims))}. "
                f"Uninstall all but one, or switch one off: {DISABLED_VARIABLE}={claims[-1].distribution}."
            )
        return claims[0]

    def absence(self, name: object) -> PeftCoreError:
        """Return (not raise) the error that says why there is no such method and what to do about it."""
        key = canonical(str(name))
        for claim in self.listing.disabled:
            if canonical(claim.name) == key and claim.is_method:
                return PluginDisabledError(
                    f"The method {key!r} of {claim} is switched off by {DISABLED_VARIABLE}. "
                    "Take it off that list, then restart, or call registry.refresh()."
                )
        for finding in self.listing.findings:
            if canonical(finding.claim.name) == key:
                return UnknownMethodError(
                    f"{finding.claim} can't be used: {finding.problem}. Its author must rename it."
                )
        return UnknownMethodError(f"No installed plugin provides the method {name!r}. {self._advice(key)}")

    def _advice(self, key: str) -> str:
        plugins = self.first_party()
        if key in plugins:
            return f"Install it: pip install {plugins[key]}"
        near = nearest(key, self.names())
        return " ".join(
            [
                *([f"Did you mean {' or '.join(map(repr, near))}?"] if near else []),
                f"Installed: {', '.join(self.names()) or 'none'}.",
                "It is no plugin of peftcore's own; if another project provides it, "
                "that project's documentation names the package to install.",
            ]
        )

    def first_party(self) -> dict[str, str]:
        """Return {method: distribution} of all plugins that belong to peftcore, installed or not."""
        import importlib_metadata

        try:
            return first_party_plugins(importlib_metadata.requires(_CORE) or ())
        except importlib_metadata.PackageNotFoundError:
            return {}  # run from a source tree that is not installed


catalog = Catalog()
"""The process's one catalog."""
