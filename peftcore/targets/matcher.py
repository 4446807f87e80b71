"""ModuleMatcher: what a config asks of a dotted name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from peftcore.config import LayerConfig
from peftcore.exceptions import ConfigError, TargetError
from peftcore.targets.names import NamePatterns, last_component

#: Asks for every linear layer but the output head.
ALL_LINEAR = "all-linear"
#: The pattern of layers that are adapted only because nothing excludes them.
EVERY_LAYER = "*"

Names = str | Collection[str] | None
#: What entries say about one path: those that fit the module, and per alias those that fit this part of it.
Hits = tuple[tuple[str, ...], dict[str, tuple[str, ...]]]
#: Per fused module's name its parts in the fused order, each with its share of the outputs.
Canonical = Mapping[str, Mapping[str, int]]


class Reading(NamedTuple):
    """What a config says about one module.

    Attributes:
        entries: Every entry that asks for it, the most specific first.
        parts: Aliases that are asked for, in the fused order; empty for the whole module.
        excluding: Entries of ``exclude_modules`` that name it or parts of it.
        indices: Layer indices in its paths.
        outside: Whether ``layers_to_transform`` leaves it out.
        left_out: Whether it stays as it is, for that reason or another.
    """

    entries: tuple[str, ...]
    parts: tuple[str, ...] = ()
    excluding: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    outside: bool = False
    left_out: bool = False

    @property
    def pattern(self) -> str:
        """The entry that asks for the module."""
        return self.entries[0]


class Selection:
    """Entries, read against a module's name and against the names of its parts if it is a fused one.

    An entry means parts if its last component, or the regular expression, fits an alias and not the fused name.
    """

    def __init__(self, entries: str | Collection[str], canonical: Canonical) -> None:
        self.patterns = NamePatterns(entries)
        self._canonical = canonical
        self._parts = {fused: self._meaning_parts(entries, fused) for fused in canonical}

    def _meaning_parts(self, entries: str | Collection[str], fused: str) -> NamePatterns:
        if isinstance(entries, str):
            return self.patterns
        return NamePatterns([entry for entry in entries if self._means_part(last_component(entry), fused)])

    def _means_part(self, tail: str, fused: str) -> bool:
        return not fnmatchcase(fused, tail) and any(fnmatchcase(alias, tail) for alias in self._canonical[fused])

    def read(self, path: str) -> Hits:
        """Return the entries that fit the module, and per alias those that fit this part of it."""
        whole = self.patterns.fits(path)
        if not self._parts or (fused := last_component(path)) not in self._parts:
            return whole, {}
        parent, patterns = path[: len(path) - len(fused)], self._parts[fused]
        hits = {alias: patterns.fits(parent + alias) for alias in self._canonical[fused]}
        return whole, {alias: entries for alias, entries in hits.items() if entries and whole[:1] != entries[:1]}


class ModuleMatcher:
    """Which modules a config means, by their dotted names.

    Args:
        target_modules: See :mod:`peftcore.targets`; None with ``exclude_modules`` means every supported layer.
        exclude_modules: The same syntax; what it fits is never a target.
        layers_to_transform: Adapt only in layers with these indices; a name without an index is left out.
        layers_pattern: Name(s) of the list of layers; the index is the number right behind.
            By default the first number behind any name counts.
        canonical_modules: Names of the parts of fused modules, ``{"qkv_proj": ["q_proj", "k_proj", "v_proj"]}``, or
            with each part's share of the outputs, ``{"qkv_proj": {"q_proj": 4, "k_proj": 1, "v_proj": 1}}``.
            A target whose last component is an alias asks for that part of the fused module.
        modules_to_save: Names of modules that are never targets, nor is anything inside them.
        may_be_empty: Whether it is no error to ask for no module at all.
        from_defaults: Whether the targets are a method's defaults and not the user's words.

    Raises:
        ConfigError: A malformed expression, wildcard or canonical mapping.
    """

    def __init__(
        self,
        target_modules: Names,
        exclude_modules: Names = None,
        layers_to_transform: int | Collection[int] | None = None,
        layers_pattern: str | Sequence[str] | None = None,
        canonical_modules: Mapping[str, Any] | None = None,
        modules_to_save: Collection[str] | None = (),
        *,
        may_be_empty: bool = False,
        from_defaults: bool = False,
    ) -> None:
        self.canonical_modules: Canonical = _canonical(canonical_modules or {})
        self.every_layer = target_modules is None and bool(exclude_modules)
        self.all_linear = isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR
        self.asks_nothing = not target_modules and not self.every_layer
        self.may_be_empty = may_be_empty
        self.from_defaults = from_defaults
        named = () if self.all_linear else target_modules or ()
        self.targets = Selection(named, self.canonical_modules)
        self.exclude = Selection(exclude_modules or (), self.canonical_modules)
        indices = [layers_to_transform] if isinstance(layers_to_transform, int) else layers_to_transform
        self.layers: frozenset[int] | None = None if indices is None else frozenset(indices)
        self._index = _index_expression(layers_pattern)
        self._saved = _inside(modules_to_save or ())
        narrowed = exclude_modules or modules_to_save or self.canonical_modules or self.layers is not None
        self._entries_decide = not narrowed

    @classmethod
    def from_config(
        cls, config: LayerConfig, default_targets: Names = None, *, may_be_empty: bool = False
    ) -> ModuleMatcher:
        """Make the matcher of a config; the default targets count if it names none."""
        from_defaults = config.target_modules is None and default_targets is not None
        return cls(
            default_targets if from_defaults else config.target_modules,
            config.exclude_modules,
            config.layers_to_transform,
            config.layers_pattern,
            config.canonical_modules,
            config.modules_to_save,
            may_be_empty=may_be_empty,
            from_defaults=from_defaults,
        )

    @property
    def takes_all(self) -> bool:
        """Whether layers are found by what they are (``"all-linear"``, exclude-only) and not by name."""
        return self.all_linear or self.every_layer

    def takes(self, layer: object) -> bool:
        """Whether a supported layer is of a kind that is asked for, by its view's ``kind``."""
        kind = getattr(layer, "kind", None)
        return kind == "linear" if self.all_linear else not (self.every_layer and kind == "module")

    def match(self, module: nn.Module, name: str | None = None, prefix: str | None = None) -> tuple[str, str] | None:
        """Say by which entry a module is a target.

        Names alone decide: whether an ``"all-linear"`` or exclude-only match is a fitting layer is for whoever knows
        the kinds of layers, as :func:`find_targets` does.

        Args:
            module: The module; a subclass may look at it.
            name: Its name in its parent, or its dotted name.
            prefix: The parent's dotted name.

        Returns:
            (the entry that fits, the full name), or None.

        Raises:
            TargetError: Both a fused module and a part of it are asked for.
        """
        path = ".".join(part for part in (prefix, name) if part)
        reading = self.read([path])
        return None if reading is None or reading.left_out else (reading.pattern, path)

    def read(self, paths: Sequence[str]) -> Reading | None:
        """Read what is asked of a module that is known by one path, or by several if it is shared.

        An entry that fits one of the paths fits the module.

        Raises:
            TargetError: Both a fused module and a part of it are asked for.
        """
        if self._entries_decide and len(paths) == 1:  # as for nearly every module of nearly every config
            whole, _ = self._entries(paths[0])
            return Reading(whole) if whole else None
        asked = {path: entries for path in paths if any(entries := self._entries(path))}
        if not asked:
            return None
        inside = [path for path in asked if self.in_layers(path)]
        whole, by_part = _merge([asked[path] for path in inside or asked])
        if whole and by_part:
            raise _whole_and_part(paths[0], whole, by_part)
        excluded, excluded_parts = _merge([self.exclude.read(path) for path in paths])
        parts = self._parts(paths, by_part, excluded_parts)
        all_excluded = bool(excluded) or (bool(by_part or excluded_parts) and not parts)
        return Reading(
            entries=whole or tuple(dict.fromkeys(entry for part in by_part.values() for entry in part)),
            parts=parts,
            excluding=(*excluded, *(entry for part in excluded_parts.values() for entry in part)),
            indices=tuple(index for path in asked if (index := self.index(path)) is not None),
            outside=not inside,
            left_out=not inside or all_excluded or any(map(self._saved.fullmatch, paths)),
        )

    def _entries(self, path: str) -> Hits:
        if self.takes_all:
            return (ALL_LINEAR if self.all_linear else EVERY_LAYER,), {}
        return self.targets.read(path)

    def _parts(self, paths: Sequence[str], asked: Collection[str], excluded: Collection[str]) -> tuple[str, ...]:
        """Return the aliases asked for, in the fused order; none for a whole module of which nothing is excluded."""
        if not asked and not excluded:
            return ()
        order = dict.fromkeys(alias for path in paths for alias in self.canonical_modules.get(last_component(path), ()))
        return tuple(alias for alias in order if alias not in excluded and (not asked or alias in asked))

    def in_layers(self, path: str) -> bool:
        """Whether ``layers_to_transform`` allows a name."""
        return self.layers is None or self.index(path) in self.layers

    def index(self, path: str) -> int | None:
        """Return the layer index in a name, or None."""
        found = self._index.search(path) if self.layers is not None else None
        return None if found is None else int(found[1])

    def names(self, path: str) -> list[str]:
        """Return a module's name, and the names of its parts if it is a fused one."""
        fused = last_component(path)
        return [path, *(path[: len(path) - len(fused)] + alias for alias in self.canonical_modules.get(fused, ()))]


def _merge(several: Sequence[Hits]) -> Hits:
    """Join what entries say about a shared module's paths."""
    if len(several) == 1:
        return several[0]
    whole: dict[str, None] = {}
    by_part: dict[str, tuple[str, ...]] = {}
    for entries, parts in several:
        whole.update(dict.fromkeys(entries))
        for alias, hits in parts.items():
            by_part[alias] = by_part.get(alias, ()) + hits
    return tuple(whole), by_part


def _whole_and_part(path: str, whole: Sequence[str], by_part: Mapping[str, Sequence[str]]) -> TargetError:
    entries = ", ".join(sorted({repr(entry) for hits in by_part.values() for entry in hits}))
    return TargetError(
        f"target_modules asks for the whole of {path} by {whole[0]!r}, and for its parts {', '.join(by_part)} "
        f"by {entries}. Keep one of the two."
    )


def _canonical(mapping: Mapping[str, Any]) -> Canonical:
    """Give every part a share, 1 where none is stated."""
    checked: dict[str, dict[str, int]] = {}
    for fused, spec in mapping.items():
        grouped = isinstance(spec, Mapping) and spec.keys() == {"parts", "groups"}
        parts = spec["parts"] if grouped else spec
        names = list(parts) if isinstance(parts, (Mapping, list, tuple)) else []
        shares = dict(parts) if isinstance(parts, Mapping) else dict.fromkeys(names, 1)
        distinct = len({fused, *names}) == len(names) + 1 > 1
        plain = all(isinstance(name, str) and name and "." not in name for name in (fused, *names))
        if not (distinct and plain and all(type(share) is int and share > 0 for share in shares.values())):
            raise ConfigError(
                f"canonical_modules[{fused!r}]: must list distinct names of parts, without dots, or give each a whole "
                f"share above 0, got {parts!r}."
            )
        checked[fused] = shares
    return checked


def _index_expression(layers_pattern: str | Sequence[str] | None) -> re.Pattern[str]:
    names = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern or []
    list_name = "|".join(map(re.escape, names)) or r"(?!\d+\.)[^.]+"
    return re.compile(rf"(?:^|\.)(?:{list_name})\.(\d+)(?:\.|$)")


def _inside(names: Collection[str]) -> re.Pattern[str]:
    """Compile an expression that the modules of these names, and all that stand inside them, match fully."""
    return re.compile(rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(names)))})(?:\..*)?" if names else r"(?!)")
