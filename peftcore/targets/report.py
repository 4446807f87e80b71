"""What was found, what was not, and the errors that say so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, NoReturn, TypeVar

from torch import nn

from peftcore.exceptions import TargetError, UnsupportedLayerError
from peftcore.targets.names import folded_indices
from peftcore.targets.showing import target_view
from peftcore.views import View, Viewed

L = TypeVar("L")

OnUnmatched = Literal["error", "warn", "ignore"]
Sites = tuple[tuple[nn.Module, str], ...]


@dataclass(frozen=True)
class Match(Generic[L]):
    """One module that a config asks for and that can be adapted.

    Attributes:
        path: Dotted name in the user's model; the first one of a shared module.
        sites: Every (parent, attribute) where it stands.
        module: The frozen module.
        layer: What the caller's ``adapt`` returned for it.
        pattern: The entry of the config that asks for it.
        parts: Aliases of a fused module that are asked for, in the fused order; empty for the whole module.
    """

    path: str
    sites: Sites
    module: nn.Module
    layer: L
    pattern: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParameterMatch:
    """One parameter that a config asks for by name.

    Attributes:
        path: Dotted name of the module that owns it; the first one of a shared module.
        sites: Every (parent, attribute) where the owner stands.
        module: The owner.
        parameter: Name of the parameter in its owner.
        pattern: The entry of the config that asks for it.
    """

    path: str
    sites: Sites
    module: nn.Module
    parameter: str
    pattern: str

    @property
    def name(self) -> str:
        """The parameter's dotted name in the user's model."""
        return f"{self.path}.{self.parameter}"


@dataclass(frozen=True)
class Unsupported:
    """A module (or parameter) that an entry fits and that can't be adapted.

    Attributes:
        path: Its dotted name.
        pattern: The entry.
        class_name: Class of the module.
        fatal: Whether the entry names it outright, or fits nothing that can be adapted.
        inside: Names of modules inside it that could be adapted.
    """

    path: str
    pattern: str
    class_name: str
    fatal: bool = False
    inside: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class _Report:
    """What all reports share: the entries that failed, and how they become an error, a warning or a text."""

    #: The config's field that was read.
    option: ClassVar[str]
    #: What its entries name.
    thing: ClassVar[str]

    unmatched: Mapping[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    unsupported: tuple[Unsupported, ...] = field(default=(), kw_only=True)
    hints: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    supported: str = field(default="", kw_only=True)
    may_be_empty: bool = field(default=False, kw_only=True)

    def found(self) -> Iterable[tuple[str, str]]:
        """Yield (entry, dotted name) of everything found."""
        raise NotImplementedError

    def check(self, on_unmatched: OnUnmatched = "error") -> None:
        """Raise, or warn, if something that was asked for is not there.

        Args:
            on_unmatched: What becomes of entries that fit nothing.

        Raises:
            UnsupportedLayerError: An entry names something that can't be adapted.
            TargetError: An entry fits nothing and ``on_unmatched`` is ``"error"``, or nothing at all was found.
        """
        if on_unmatched not in ("error", "warn", "ignore"):
            raise ValueError(f"on_unmatched must be 'error', 'warn' or 'ignore', got {on_unmatched!r}.")
        fatal = [refused for refused in self.unsupported if refused.fatal]
        if fatal:
            raise UnsupportedLayerError("\n".join([*self._describe_unsupported(fatal), *self._describe_unmatched()]))
        if self.unmatched and on_unmatched == "error":
            advice = "Correct the config, or pass on_unmatched='warn' to go on with what was found."
            raise TargetError("\n".join([*self._describe_unmatched(), advice]))
        nothing = not self.may_be_empty and not any(True for _ in self.found())
        if nothing:
            self._refuse_nothing()
        if self.unmatched and on_unmatched == "warn":
            warnings.warn("\n".join(self._describe_unmatched()), UserWarning, stacklevel=3)

    def failures(self) -> list[str]:
        """Return what is wrong with what was asked for, a sentence or more each."""
        fatal = [refused for refused in self.unsupported if refused.fatal]
        return [*self._describe_unmatched(), *(self._describe_unsupported(fatal) if fatal else ())]

    def _refuse_nothing(self) -> NoReturn:
        supported = f" Layers that can be adapted: {self.supported}." if self.supported else ""
        described = self._describe_unmatched() or [
            f"{self.option} leaves no {self.thing} of the model to adapt.{supported}"
        ]
        raise TargetError("\n".join(described))

    def _describe_unmatched(self) -> list[str]:
        lines = []
        for entry, nearest in self.unmatched.items():
            names = f" The nearest names are: {', '.join(nearest)}." if nearest else ""
            hint = f" {self.hints[entry]}" if entry in self.hints else ""
            option, name = _option_and_name(entry, self.option)
            lines.append(f"{option}: {name!r} fits no {self.thing} of the model.{names}{hint}")
        return lines

    def _describe_unsupported(self, refused: Sequence[Unsupported]) -> list[str]:
        lines = []
        for (pattern, class_name), same in _grouped(((r.pattern, r.class_name), r) for r in refused).items():
            where = _listed(r.path for r in same)
            line = f"{self.option}: {pattern!r} fits {where}, of class {class_name}, which can't be adapted."
            inside = next((r.inside for r in same if r.inside), ())
            lines.append(line + (f" Did you mean what is inside: {', '.join(inside)}?" if inside else ""))
        return [*lines, f"Layers that can be adapted: {self.supported}."] if self.supported else lines

    def __str__(self) -> str:
        lines = [self.option]
        for entry, same in _grouped(self.found()).items():
            lines.append(f"  {entry!r}: {len(same)} {self.thing}{'s' if len(same) > 1 else ''}: {_listed(same)}")
        lines.extend(f"  not found, {line}" for line in self._describe_unmatched())
        for entry, refused in _grouped((r.pattern, r) for r in self.unsupported).items():
            kinds = _grouped((r.class_name, r.path) for r in refused)
            lines.extend(f"  not supported, by {entry!r}: {name}: {_listed(paths)}" for name, paths in kinds.items())
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class TargetReport(_Report, Viewed, Generic[L]):
    """Which modules a config asks for; see :func:`peftcore.targets.find_targets`.

    Attributes:
        matched: In the order of the walk.
        unmatched: Per entry that fits nothing, the nearest names of the model.
            What fails in other fields stands as ``"exclude_modules=head"`` and ``"layers_to_transform=99"``.
        unsupported: Modules that an entry fits and that can't be adapted.
        hints: Per unmatched entry, a sentence on why, where there is one.
        supported: The layers that can be adapted, for messages.
        may_be_empty: Whether it is no error that nothing matched.
    """

    option: ClassVar[str] = "target_modules"
    thing: ClassVar[str] = "module"

    matched: tuple[Match[L], ...] = ()

    def found(self) -> Iterable[tuple[str, str]]:
        """Yield (entry, dotted name) of everything found; parts of a fused module stand behind its name."""
        for match in self.matched:
            yield match.pattern, match.path + (f" ({', '.join(match.parts)})" if match.parts else "")

    def view(self, trainable: Mapping[str, int] | None = None) -> View:
        """Return the modules as a tree, and what was asked for in vain.

        Args:
            trainable: By dotted path: how many parameters train there; shown beside.
        """
        number = len(self.matched)
        title = f"{self.option}: {number} {self.thing}{'' if number == 1 else 's'}"
        return target_view(title, self.matched, self.failures(), trainable)


@dataclass(frozen=True)
class ParameterReport(_Report):
    """Which parameters a config asks for; see :func:`peftcore.targets.find_parameters`.

    Attributes are those of :class:`TargetReport`; ``unsupported`` holds parameters of the model itself, which has no
    parent in which it could be replaced.
    """

    option: ClassVar[str] = "target_parameters"
    thing: ClassVar[str] = "parameter"

    matched: tuple[ParameterMatch, ...] = ()

    def found(self) -> Iterable[tuple[str, str]]:
        """Yield (entry, dotted name) of everything found."""
        return ((match.pattern, match.name) for match in self.matched)


def _option_and_name(entry: str, option: str) -> tuple[str, str]:
    """Split the key of an unmatched entry that stands in another field than the report's own."""
    for other in ("exclude_modules", "layers_to_transform"):
        if entry.startswith(other + "="):
            return other, entry[len(other) + 1 :]
    return option, entry


K = TypeVar("K")
V = TypeVar("V")


def _grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def folded(paths: Iterable[str]) -> list[str]:
    """Write paths that differ in their indices alone as one, with its count: ``layers.*.q_proj (x24)``."""
    groups = _grouped((folded_indices(path), path) for path in paths)
    return [same[0] if len(same) == 1 else f"{template} (x{len(same)})" for template, same in groups.items()]


def _listed(paths: Iterable[str], most: int = 8) -> str:
    lines = folded(paths)
    return ", ".join(lines[:most]) + (f" and {len(lines) - most} more" if len(lines) > most else "")
