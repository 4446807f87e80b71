"""Why entries of a config had no effect, and what they may have meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from peftcore.targets.matcher import ModuleMatcher
from peftcore.targets.names import NamePatterns
from peftcore.targets.nearest import NearestNames

_SUGGESTED = 20  # entries that get suggestions; a config that is wrong in more of them is for another model


@dataclass
class Failures:
    """Entries that had no effect, each with the nearest names and, where one is known, the reason.

    Attributes:
        matcher: What was asked for.
        paths: Every dotted name of the model.
        targets: Those of what was found.
        met: Entries of the targets that are known to name something.
        excluding: Entries of the exclusions that are known to have an effect.
        indices: Layer indices in the names of what is asked for.
    """

    matcher: ModuleMatcher
    paths: Sequence[str]
    targets: Sequence[str]
    met: Collection[str]
    excluding: Collection[str]
    indices: Collection[int]
    unmatched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)

    def collect(self) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """Return the unmatched entries with their nearest names, and hints for some of them."""
        self._targets()
        self._exclusions()
        self._layers()
        return self.unmatched, self.hints

    def _note(self, key: str, hint: str = "", nearest: tuple[str, ...] = ()) -> None:
        self.unmatched[key] = nearest
        if hint:
            self.hints[key] = hint

    def _names(self, paths: Iterable[str]) -> list[str]:
        return [name for path in paths for name in self.matcher.names(path)]

    def _targets(self) -> None:
        patterns = self.matcher.targets.patterns
        if set(patterns.entries) <= set(self.met):
            return
        names = self._names(self.paths)
        missing = patterns.unmet(self.met, self._names(filter(self.matcher.in_layers, self.paths)))
        elsewhere = set(missing).difference(patterns.unmet(self.met, names))
        for entry, nearest in suggest(missing, names, patterns.is_regex).items():
            filtered = "It names modules, but none in the layers of layers_to_transform." if entry in elsewhere else ""
            self._note(entry, filtered or _list_hint(patterns, entry), nearest)

    def _exclusions(self) -> None:
        patterns = self.matcher.exclude.patterns
        idle = [entry for entry in patterns.entries if entry not in self.excluding]
        if not idle:
            return
        names = self._names(self.paths)
        missing = patterns.unmet(self.excluding, names)
        for entry, nearest in suggest(missing, names, patterns.is_regex).items():
            self._note(f"exclude_modules={entry}", _list_hint(patterns, entry), nearest)
        for entry in idle:
            if entry not in missing and self._holds_targets(entry):
                self._note(f"exclude_modules={entry}", f"Targets stay inside it; to leave them out, add '*{entry}.*'.")

    def _holds_targets(self, entry: str) -> bool:
        patterns = self.matcher.exclude.patterns
        if not patterns.is_name(entry):
            return False
        starts = tuple(path + "." for path in self.paths if entry in patterns.fits(path))
        return any(path.startswith(starts) for path in self.targets)

    def _layers(self) -> None:
        there = f"The targets stand in layers {min(self.indices)} to {max(self.indices)}." if self.indices else ""
        for index in sorted((self.matcher.layers or frozenset()).difference(self.indices)):
            self._note(f"layers_to_transform={index}", there)


def suggest(missing: Collection[str], names: Sequence[str], is_regex: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the names nearest to each of the first entries that fit nothing; none for the others."""
    if not missing or not names:
        return dict.fromkeys(missing, ())
    nearest = NearestNames(names)
    shown = [nearest.to_entry(entry, is_regex) for entry in list(missing)[:_SUGGESTED]]
    return {**dict.fromkeys(missing, ()), **dict(zip(missing, shown, strict=False))}


def _list_hint(patterns: NamePatterns, entry: str) -> str:
    """Explain to someone who gave one name as a str why it is not read as a suffix."""
    if not (patterns.is_regex and entry.replace(".", "").replace("_", "").isalnum()):
        return ""
    return f"A str is a regular expression for whole names; to name modules by suffix, write [{entry!r}]."
