"""How every installed plugin fares, said without importing any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from peftcore.catalog import DISABLED_VARIABLE, Claim, Listing

PluginState = Literal["available", "loaded", "disabled", "conflicting", "broken"]

#: States in which a plugin can't serve although nobody switched it off.
WRONG_STATES = frozenset({"conflicting", "broken"})


class PluginStatus(NamedTuple):
    """How one installed plugin fares."""

    distribution: str
    """The distribution's name; empty for methods that were registered in this process."""
    version: str
    entry_point: str
    """The object reference that is imported."""
    methods: tuple[str, ...]
    """Names of its methods; none for an extension."""
    state: PluginState
    """``available`` means: not imported yet."""
    cause: str | None
    """Why it can't serve; None if it can."""


#: Says of a claim that nothing speaks against what has become of it so far.
StateOf = Callable[[Claim], tuple[PluginState, str | None]]


def untried(claim: Claim) -> tuple[PluginState, str | None]:
    """Say that a claim has not been imported."""
    return "available", None


def plugin_statuses(listing: Listing, state_of: StateOf = untried) -> list[PluginStatus]:
    """Return a record for each plugin, sorted; methods of one plugin share it as long as they fare alike.

    Args:
        listing: What the installed entry points say.
        state_of: Asked for each claim that stands: its state, and why it can't serve.
    """
    states: list[tuple[Claim, PluginState, str | None]] = []
    states += [(claim, "disabled", f"named in {DISABLED_VARIABLE}") for claim in listing.disabled]
    states += [(finding.claim, "broken", finding.problem) for finding in listing.findings]
    for rivals in listing.methods.values():
        cause = f"claimed by {' and by '.join(map(str, rivals))}" if len(rivals) > 1 else None
        states += [(claim, "conflicting", cause) if cause else (claim, *state_of(claim)) for claim in rivals]
    states += [(claim, *state_of(claim)) for claim in listing.extensions]
    methods: dict[tuple[str, str, str, PluginState, str | None], list[str]] = {}
    for claim, state, cause in states:
        names = methods.setdefault((claim.distribution, claim.version, claim.value, state, cause), [])
        names.extend([claim.name] if claim.is_method else [])
    records = [
        PluginStatus(dist, version, entry, tuple(names), state, cause)
        for (dist, version, entry, state, cause), names in methods.items()
    ]
    return sorted(records, key=lambda record: record[:3])
