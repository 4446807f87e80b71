"""find_targets and find_parameters: one walk over the model, and a report of what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import nn

from peftcore.exceptions import TargetError
from peftcore.targets.failures import Failures, suggest
from peftcore.targets.inventory import Inventory, Place, Unwrap, sites_of
from peftcore.targets.matcher import ModuleMatcher, Reading
from peftcore.targets.names import NamePatterns, last_component
from peftcore.targets.report import Match, ParameterMatch, ParameterReport, TargetReport, Unsupported

L = TypeVar("L")
_SHOWN_INSIDE = 8


def _itself(module: nn.Module) -> nn.Module:
    return module


def find_targets(
    model: nn.Module,
    matcher: ModuleMatcher,
    adapt: Callable[[nn.Module], L | None],
    unwrap: Unwrap = _itself,
    supported: str = "",
) -> TargetReport[L]:
    """Find the modules that a matcher means, in one walk; the model is only read.

    A matched module may stand inside another matched one.

    Args:
        model: The user's model; the model itself is no target, for nothing holds it.
        matcher: What is asked for.
        adapt: Returns the view of a layer that can be adapted, and None for any other module.
            It is called once for each module asked for; if an entry fails, also for modules to suggest.
        unwrap: Returns the frozen module of an adapted layer, and any other module itself.
        supported: The layers that can be adapted, for messages.

    Returns:
        The report; call its ``check`` to have failures raised.

    Raises:
        TargetError: Nothing is asked for, or both a fused module and a part of it.
    """
    if matcher.asks_nothing and matcher.may_be_empty:
        return TargetReport(supported=supported, may_be_empty=True)
    inventory = Inventory(model, unwrap)
    head = _output_head(model, unwrap)
    if matcher.asks_nothing:
        raise _no_targets(inventory, head, adapt)
    search = _Search(matcher, adapt)
    left_alone = head if matcher.takes_all else None
    for places in inventory:
        if places[0].module is not left_alone:
            search.consider(places)
    found = [match.path for match in search.matched]
    failures = Failures(matcher, inventory.paths(), found, search.met, search.excluding, search.indices)
    unmatched, hints = failures.collect()
    return TargetReport(
        tuple(search.matched),
        unmatched=unmatched,
        unsupported=search.refused(inventory),
        hints=hints,
        supported=supported,
        may_be_empty=matcher.may_be_empty,
    )


def find_parameters(model: nn.Module, names: Sequence[str], unwrap: Unwrap = _itself) -> ParameterReport:
    """Find parameters by their dotted names, in one walk; the model is only read.

    Args:
        model: The user's model.
        names: Whole names, dotted suffixes (``experts.gate_up_proj``), or wildcards over the whole name.
        unwrap: As for :func:`find_targets`.

    Returns:
        The report; a parameter of the model itself counts as unsupported, for nothing holds the model.
    """
    patterns = NamePatterns(list(names))
    matched, unsupported, met, paths = [], [], set(), []
    inventory = Inventory(model, unwrap)
    for places in [[Place("", inventory.root, "", inventory.root)], *inventory]:
        owner = places[0].module
        for parameter in [name for name, value in owner._parameters.items() if value is not None]:
            full = [f"{place.path}.{parameter}".lstrip(".") for place in places]
            paths.extend(full)
            entries = [entry for path in full for entry in patterns.fits(path)]
            met.update(entries)
            if entries and owner is inventory.root:
                class_name = f"{type(owner).__name__} (the model itself)"
                unsupported.append(Unsupported(full[0], entries[0], class_name, fatal=True))
            elif entries:
                matched.append(ParameterMatch(places[0].path, sites_of(places), owner, parameter, entries[0]))
    unmatched = suggest(patterns.unmet(met, paths), paths)
    return ParameterReport(tuple(matched), unmatched=unmatched, unsupported=tuple(unsupported), may_be_empty=not names)


class _Search(Generic[L]):
    """What the walk has found so far.

    Attributes:
        met: Entries of the targets that name something, be it left out for another reason.
        excluding: Entries of the exclusions that had an effect on modules with none inside.
        adapted: Entries of what matched.
        indices: Layer indices in the paths of what is asked for, allowed or not.
        left: What is asked for and can't be adapted.
    """

    def __init__(self, matcher: ModuleMatcher, adapt: Callable[[nn.Module], L | None]) -> None:
        self.matcher = matcher
        self.adapt = adapt
        self.matched: list[Match[L]] = []
        self.left: list[tuple[Place, Reading]] = []
        self.met: set[str] = set()
        self.adapted: set[str] = set()
        self.excluding: set[str] = set()
        self.indices: set[int] = set()

    def consider(self, places: list[Place]) -> None:
        """Read what is asked of a module, and look at it if something is."""
        reading = self.matcher.read([place.path for place in places])
        if reading is None:
            return
        self.indices.update(reading.indices)
        if not places[0].module._modules:  # a container that stays out may hold targets that do not
            self.excluding.update(reading.excluding)
        if not reading.outside:
            self.met.update(reading.entries)
        if not reading.left_out:
            self._adapt(places, reading)

    def _adapt(self, places: list[Place], reading: Reading) -> None:
        path, module = places[0].path, places[0].module
        layer = self.adapt(module)
        if layer is None or not self.matcher.takes(layer):
            self.left.append((places[0], reading))
            return
        self.matched.append(Match(path, sites_of(places), module, layer, reading.pattern, reading.parts))
        self.adapted.update(reading.entries)

    def refused(self, inventory: Inventory) -> tuple[Unsupported, ...]:
        """Return what was asked for and can't be adapted; nothing of it was meant where layers were found by kind."""
        if self.matcher.takes_all:
            return ()
        patterns, shown, refused = self.matcher.targets.patterns, set(), []
        for place, reading in self.left:
            named = any(patterns.is_name(entry) for entry in reading.entries)
            fatal = named or self.adapted.isdisjoint(reading.entries)
            class_name = type(place.module).__name__
            inside: tuple[str, ...] = ()
            if fatal and (reading.pattern, class_name) not in shown:
                shown.add((reading.pattern, class_name))
                inside = self._inside(place.path, inventory)
            refused.append(Unsupported(place.path, reading.pattern, class_name, fatal, inside))
        return tuple(refused)

    def _inside(self, path: str, inventory: Inventory) -> tuple[str, ...]:
        """Name what stands inside a container and could be adapted, as suffixes from the container's name on."""
        start = len(path) - len(last_component(path))
        names = (place for places in inventory for place in places if place.path.startswith(path + "."))
        able = (place.path[start:] for place in names if self.adapt(place.module) is not None)
        return tuple(name for name, _ in zip(able, range(_SHOWN_INSIDE), strict=False))


def _output_head(model: nn.Module, unwrap: Unwrap) -> nn.Module | None:
    """Return the module that turns hidden states into the vocabulary, if the model says which it is."""
    ask = getattr(model, "get_output_embeddings", None)
    try:
        head = ask() if callable(ask) else None
    except (AttributeError, NotImplementedError):  # models without a head answer so
        return None
    return unwrap(head) if isinstance(head, nn.Module) else None


def _no_targets(inventory: Inventory, head: nn.Module | None, adapt: Callable[[nn.Module], L | None]) -> TargetError:
    linear = (
        last_component(places[0].path)
        for places in inventory
        if places[0].module is not head and getattr(adapt(places[0].module), "kind", None) == "linear"
    )
    names = list(dict.fromkeys(linear))
    among = f" The model's linear layers are called: {', '.join(names[:12])}." if names else ""
    return TargetError(f"No module is asked for. Set target_modules to a list of names, or to 'all-linear'.{among}")
