"""The names of a model that an entry which fits nothing may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from peftcore.targets.names import is_wildcard, last_component

_WORD = re.compile(r"[A-Za-z_]\w*")
_POOL = 500  # so that one suggestion costs no more in a model of many layers
_SHOWN = 3


class NearestNames:
    """Suggestions from a model's dotted names; made only when something failed."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = list(paths)
        self._tails = list(dict.fromkeys(map(last_component, self._paths)))

    def to_name(self, name: str) -> tuple[str, ...]:
        """Return the names nearest to a name or a dotted suffix, in as many components."""
        depth = name.count(".") + 1
        tails = self._close(last_component(name), self._tails)
        return tails if depth == 1 else self._among(name, tails, depth)

    def to_expression(self, expression: str) -> tuple[str, ...]:
        """Return what is nearest to the last word of a wildcard or of a regular expression."""
        words = _WORD.findall(expression)
        if not words:
            return ()
        tails = self._close(words[-1], self._tails)
        return (
            self._among(expression, tails, max(path.count(".") + 1 for path in self._paths))
            if words[-1] in tails
            else tails
        )

    def to_entry(self, entry: str, is_regex: bool = False) -> tuple[str, ...]:
        """Return the names nearest to an entry of any form."""
        plain = not is_wildcard(entry) and (not is_regex or _is_plain(entry))
        return self.to_name(entry) if plain else self.to_expression(entry)

    def _close(self, name: str, names: list[str]) -> tuple[str, ...]:
        return tuple(get_close_matches(name, names, n=_SHOWN))

    def _among(self, name: str, tails: tuple[str, ...], depth: int) -> tuple[str, ...]:
        wanted = frozenset(tails)
        pool: dict[str, None] = {}
        for path in self._paths:
            if last_component(path) in wanted:
                pool[".".join(path.split(".")[-depth:])] = None
            if len(pool) == _POOL:
                break
        names = list(pool)
        return self._close(name, names) or tuple(names[:_SHOWN])


def _is_plain(expression: str) -> bool:
    return re.fullmatch(r"[\w.]*", expression) is not None
