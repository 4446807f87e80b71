"""Entries that stand for dotted names, compiled so that their number hardly matters."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from peftcore.exceptions import ConfigError

_WILDCARD_CHARACTERS = re.compile(r"[*?\[]")
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_WILDCARD_TOKEN = re.compile(r"\*+|\[!?\]?[^\]]*\]|.", re.DOTALL)


def is_wildcard(entry: str) -> bool:
    """Whether an entry of a list is a wildcard rather than a name."""
    return _WILDCARD_CHARACTERS.search(entry) is not None


def last_component(path: str) -> str:
    """Return what stands behind the last dot."""
    return path[path.rfind(".") + 1 :]


def folded_indices(path: str) -> str:
    """Return a path with ``*`` for its indices: what layers that are alike have in common."""
    return _INDEX.sub("*", path)


class NamePatterns:
    """Names, wildcards, or one regular expression: which of them does a dotted path fit?

    Names are looked up in a set, and all wildcards are one expression that shares their common beginnings, so a path
    costs next to the same for one entry and for a thousand.

    Args:
        entries: A str is one regular expression (full match); anything else is a collection of names and wildcards.

    Raises:
        ConfigError: An expression or a wildcard can't be compiled.
    """

    def __init__(self, entries: str | Iterable[str]) -> None:
        self.is_regex = isinstance(entries, str)
        self.entries: tuple[str, ...] = (entries,) if isinstance(entries, str) else tuple(sorted(set(entries)))
        self._names = frozenset() if self.is_regex else frozenset(e for e in self.entries if not is_wildcard(e))
        self._tails = frozenset(map(last_component, self._names))
        self._dotted = self._tails != self._names
        self._expression: re.Pattern[str] | None = None
        if isinstance(entries, str):
            self._expression = _compile_regex(entries)
        elif len(self._names) < len(self.entries):
            self._wildcards = tuple(entry for entry in self.entries if is_wildcard(entry))
            self._expression = _compile_wildcards(self._wildcards)

    def is_name(self, entry: str) -> bool:
        """Whether an entry names modules outright, so that what it hits was surely meant."""
        return entry in self._names

    def fits(self, path: str) -> tuple[str, ...]:
        """Return the entries that a path fits: every name, the longest first, then at most one wildcard."""
        names: tuple[str, ...] = ()
        tail = last_component(path)
        if tail in self._tails:
            candidates = suffixes(path) if self._dotted else (tail,)
            names = tuple([suffix for suffix in candidates if suffix in self._names])
        found = self._expression.fullmatch(path) if self._expression is not None else None
        if found is None:
            return names
        return (*names, self.entries[0] if self.is_regex else self._wildcards[int(str(found.lastgroup)[1:])])

    def unmet(self, met: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
        """Return the entries that no path fits, given those that are known to be met.

        :meth:`fits` names one wildcard of several, so one that others shadow is looked at again, without the others.
        """
        known = set(met)
        left = tuple(entry for entry in self.entries if entry not in known)
        while left:
            patterns = NamePatterns(left[0] if self.is_regex else left)
            found = {entry for path in paths for entry in patterns.fits(path)}
            if not found:
                break
            left = tuple(entry for entry in left if entry not in found)
        return left


def suffixes(path: str) -> Iterable[str]:
    """Yield a path and all its dotted suffixes, the longest first."""
    start = 0
    while True:
        yield path[start:]
        start = path.find(".", start) + 1
        if not start:
            return


@functools.lru_cache(maxsize=64)
def _compile_regex(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"{expression!r} is no regular expression ({error}). A str is read as one; to give names, write a list."
        ) from error


@functools.lru_cache(maxsize=64)
def _compile_wildcards(entries: tuple[str, ...]) -> re.Pattern[str]:
    """Compile wildcards into one expression whose last group ``w<i>`` says which of them was found."""
    branches = [(*_tokens(entry), f"(?P<w{i}>)") for i, entry in enumerate(entries)]
    try:
        return re.compile(_alternation(branches), re.DOTALL)
    except re.error as error:
        raise ConfigError(f"The wildcards {', '.join(entries[:5])} can't be read: {error}.") from error


def _tokens(entry: str) -> Iterable[str]:
    for token in _WILDCARD_TOKEN.findall(entry):
        if token.startswith("*"):
            yield ".*"
        elif token == "?":
            yield "."
        elif len(token) > 1:
            yield _character_set(token[1:-1])
        else:
            yield re.escape(token)


def _character_set(inside: str) -> str:
    negated = inside.startswith("!")
    characters = inside[1:] if negated else inside
    escaped = "".join(c if c == "-" else re.escape(c) for c in characters)
    return f"[{'^' if negated else ''}{escaped}]"


def _alternation(branches: list[tuple[str, ...]]) -> str:
    """Join token sequences, each common beginning written once."""
    if len(branches) == 1:
        return "".join(branches[0])
    shared = 0
    while len({branch[shared] for branch in branches}) == 1:
        shared += 1
    groups: dict[str, list[tuple[str, ...]]] = {}
    for branch in branches:
        groups.setdefault(branch[shared], []).append(branch[shared:])
    return "".join(branches[0][:shared]) + "(?:" + "|".join(map(_alternation, groups.values())) + ")"
