"""Checkpoints: an adapter's tensors under the names that its file has, taken out of the model and put into it.

The names follow from the structure: for each part of the adapter, the part's key and the names of its adapter module's
own state.
No name is ever cut up or searched for an adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from peftcore.adapters.base import Adapter
from peftcore.collector import paused_collector
from peftcore.exceptions import CheckpointError
from peftcore.progress import progress
from peftcore.registry import registry
from peftcore.slots import Placement
from peftcore.targets import NearestNames
from peftcore.tuner import Tuner

T = TypeVar("T")

#: What the names of tensors start with that an adapter holds once per model.
SHARED_PREFIX = "base_model."


@dataclass(frozen=True)
class LoadReport:
    """How a file's tensors fitted an adapter.

    Attributes:
        loaded: Names that were loaded.
        missing_keys: Names that the adapter has and the file lacks.
        unexpected_keys: Names that the file has and the adapter lacks.
        mismatched: Names whose shapes differ: (in the file, in the adapter).
    """

    loaded: tuple[str, ...] = ()
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing_keys or self.unexpected_keys or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors fit."]
        lines += _listed("missing from the file", self.missing_keys)
        lines += _listed("not known to the adapter", [self._with_advice(name) for name in self.unexpected_keys])
        shapes = [
            f"{name}: {list(there)} in the file, {list(here)} in the adapter"
            for name, (there, here) in self.mismatched.items()
        ]
        return "\n".join(lines + _listed("of another shape", shapes))

    def _with_advice(self, name: str) -> str:
        near = NearestNames(self.missing_keys).to_name(name)
        return f"{name} (the adapter has {near[0]})" if near else name


def _listed(what: str, names: Sequence[str], most: int = 8) -> list[str]:
    if not names:
        return []
    rest = [f"  … and {len(names) - most} more"] if len(names) > most else []
    return [f"{len(names)} {what}:", *(f"  {name}" for name in names[:most]), *rest]


# ------------------------------------------------------------------------------------------ in the model


class SavedTensor(NamedTuple):
    """A tensor of an adapter that goes into its file.

    Attributes:
        owner: The module that holds it.
        name: Its name there.
    """

    owner: nn.Module
    name: str

    @property
    def store(self) -> dict[str, Any]:
        """The owner's parameters or buffers."""
        return self.owner._parameters if self.name in self.owner._parameters else self.owner._buffers

    @property
    def tensor(self) -> Tensor:
        """The tensor as it is now."""
        found: Tensor = self.store[self.name]
        return found


def saved_tensors(tuner: Tuner) -> dict[str, SavedTensor]:
    """Return all tensors of an adapter that go into its file, by their names there, in order."""
    found: dict[str, SavedTensor] = {}
    for prefix, module in tuner.saved_modules():
        _collect(prefix, module, found, _place)
    return found


def live_tensors(tuner: Tuner) -> list[SavedTensor]:
    """Return the tensors that an adapter holds in the model and that a state dict of the model has.

    A file may hold others: those of modules that are made for the occasion, and computed from these.
    """
    found: dict[str, SavedTensor] = {}
    for number, module in enumerate(tuner.modules()):
        _collect(f"{number}.", module, found, _place)
    return list(found.values())


@contextmanager
def other_values(places: Sequence[SavedTensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Let an adapter hold other tensors for the time of the block, of whatever dtype and wherever they are."""
    own = [place.tensor for place in places]
    try:
        for place, tensor, value in zip(places, own, values, strict=True):
            parameter = isinstance(tensor, nn.Parameter)
            place.store[place.name] = nn.Parameter(value.detach(), requires_grad=False) if parameter else value
        yield
    finally:
        for place, tensor in zip(places, own, strict=True):
            place.store[place.name] = tensor


def repeated_names(tuner: Tuner, places: Mapping[str, SavedTensor]) -> dict[str, str]:
    """Return the names under which files may hold a tensor again, each with the name that it has here.

    Args:
        tuner: The adapter.
        places: What :func:`saved_tensors` returns of it.
    """
    repeated = {
        f"{tuner.layer_prefix}{placement.key}.{name}": tensor
        for placement in tuner.placements
        for name, tensor in placement.adapter.repeated_tensors().items()
    }
    own = {id(place.tensor): key for key, place in places.items()} if repeated else {}
    return {key: own[id(tensor)] for key, tensor in repeated.items()}


def derived_tensors(tuner: Tuner) -> dict[str, SavedTensor]:
    """Return what an adapter holds once per model and no file needs, by the names that it would have there."""
    shared = tuner.shared
    if shared is None:
        return {}
    return {
        f"{SHARED_PREFIX}{name}": SavedTensor(shared, name)
        for name, buffer in shared._buffers.items()
        if buffer is not None and name in shared._non_persistent_buffers_set
    }


def _collect(prefix: str, module: nn.Module, found: dict[str, T], entry: Callable[[nn.Module, str, Tensor], T]) -> None:
    """Enter what a module saves, under the file's names; this runs for every layer, so each step is a plain one."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found[prefix + name] = entry(module, name, parameter)
    if module._buffers:
        unsaved = module._non_persistent_buffers_set
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in unsaved:
                found[prefix + name] = entry(module, name, buffer)
    for name, child in module._modules.items():
        if child is not None:
            _collect(f"{prefix}{name}.", child, found, entry)


def adapter_state(tuner: Tuner) -> dict[str, Tensor]:
    """Return an adapter's tensors under the file's names, detached, not copied."""
    state: dict[str, Tensor] = {}
    with paused_collector():
        for prefix, module in tuner.saved_modules():
            _collect(prefix, module, state, _detached)
    state.update(tuner.derived_state())
    return state


def _place(owner: nn.Module, name: str, tensor: Tensor) -> SavedTensor:
    return SavedTensor(owner, name)


def _detached(owner: nn.Module, name: str, tensor: Tensor) -> Tensor:
    return tensor.detach()


@torch.no_grad()
def load_adapter_state(
    tuner: Tuner,
    state: Mapping[str, Tensor],
    *,
    strict: bool = True,
    assign: bool = False,
    ignore_mismatched_sizes: bool = False,
) -> LoadReport:
    """Load tensors into an adapter, all of them or, if something does not fit, none.

    Args:
        tuner: The adapter.
        state: By the file's names; names without the ``base_model.model.`` in front are understood too.
        strict: Refuse missing, unexpected and wrongly shaped tensors; otherwise load what fits and report the rest.
        assign: Take the file's tensors themselves instead of copying their values; for modules on the meta device.
        ignore_mismatched_sizes: Treat wrongly shaped tensors as unexpected ones that are no error.

    Raises:
        CheckpointError: Something does not fit; the message lists what. The adapter is as before.
    """
    places = saved_tensors(tuner)
    state = without_repeats(tuner, without_derived(tuner, with_prefix(state, tuner, places)), places)
    with tuner.settling(state) as state:
        if type(tuner).settling is not Tuner.settling:
            places = saved_tensors(tuner)
        report = _compare(places, state)
        if strict and not (report.complete or (ignore_mismatched_sizes and _only_shapes(report))):
            raise CheckpointError(f"The file does not fit adapter {tuner.name!r} ({tuner.method.name}). {report}")
        for placement in tuner.placements:
            _announce(placement, state, tuner.layer_prefix)
        tuner.before_load(state)
        taken: dict[int, tuple[Tensor, Tensor]] = {}
        for key in progress(report.loaded, "Loading"):
            _put(places[key], state[key], assign, taken)
    return report


def _announce(placement: Placement, state: Mapping[str, Tensor], layer_prefix: str) -> None:
    if type(placement.adapter).before_load is Adapter.before_load:
        return
    own: dict[str, SavedTensor] = {}
    _collect("", placement.adapter.saved_module(), own, _place)
    prefix = f"{layer_prefix}{placement.key}."
    placement.adapter.before_load({name: state[prefix + name] for name in own if prefix + name in state})


def _only_shapes(report: LoadReport) -> bool:
    return not (report.missing_keys or report.unexpected_keys)


def rename_keys(
    state: Mapping[str, Tensor], mapping: Mapping[str, str], layer_prefix: str = Tuner.layer_prefix
) -> Mapping[str, Tensor]:
    """Return a state under other names.

    Args:
        state: By the file's names.
        layer_prefix: What the names of tensors in layers start with.
        mapping: Regular expressions and what to write instead, applied to the part behind ``base_model.model.``; of
            several that fit, the first counts.
    """
    if not mapping:
        return state
    return {_renamed(key, mapping, layer_prefix): value for key, value in state.items()}


def _renamed(key: str, mapping: Mapping[str, str], layer_prefix: str) -> str:
    path = key.removeprefix(layer_prefix)
    prefix = key[: len(key) - len(path)]
    for pattern, replacement in mapping.items():
        renamed, number = re.subn(pattern, replacement, path)
        if number:
            return prefix + renamed
    return key


def writer_of(method: str) -> dict[str, str]:
    """Return what a file says about who wrote it: the core, and the plugin of the method."""
    from importlib_metadata import version

    writer = {"peftcore_version": version("peftcore"), "peftcore_method": method}
    if method not in registry.catalog.in_process:
        claim = registry.catalog.claim(method)
        writer["peftcore_plugin"] = f"{claim.distribution} {claim.version}"
    return writer


def with_prefix(state: Mapping[str, Tensor], tuner: Tuner, places: Mapping[str, SavedTensor]) -> Mapping[str, Tensor]:
    """Give names that come from a model adapted in place the prefix that files have.

    Args:
        state: The tensors by the file's names.
        tuner: The adapter.
        places: What :func:`saved_tensors` returns of it.
    """
    if all(key in places for key in state):
        return state
    known = {*places, *repeated_names(tuner, places)}
    prefix = tuner.layer_prefix
    return {prefix + key if key not in known and prefix + key in known else key: value for key, value in state.items()}


def without_derived(tuner: Tuner, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Leave out what a file holds although the adapter derives it from its config, such as projections from a seed.

    Raises:
        CheckpointError: The file's tensor is another one, so it was derived from something else.
    """
    derived = {key: place.tensor for key, place in derived_tensors(tuner).items() if key in state}
    if not derived:
        return state
    for key, own in derived.items():
        theirs = state[key].to(own.device)
        same = theirs.shape == own.shape and (own.is_meta or torch.equal(theirs, own.to(theirs.dtype)))
        if not same:
            raise CheckpointError(
                f"{key} in the file is not what adapter {tuner.name!r} derives from its config: they differ in "
                f"{'values' if theirs.shape == own.shape else 'shape'}. The file comes from another seed, or from a "
                "model with other layers. Load it with the config that it was written with."
            )
    return {key: value for key, value in state.items() if key not in derived}


def without_repeats(
    tuner: Tuner, state: Mapping[str, Tensor], places: Mapping[str, SavedTensor]
) -> Mapping[str, Tensor]:
    """Leave out what a file holds again of tensors that several parts share.

    Raises:
        CheckpointError: The file holds several tensors where the adapter has one.
    """
    if state.keys() <= places.keys():
        return state
    kept = dict(state)
    for key, name in repeated_names(tuner, places).items():
        again = kept.pop(key, None)
        if again is None:
            continue
        first = kept.setdefault(name, again)
        if first is not again and not torch.equal(first, again):
            raise CheckpointError(
                f"{key} and {name} are one tensor in adapter {tuner.name!r}, and two in the file: whoever wrote it "
                "trained them apart. Use a config by which these layers share nothing."
            )
    return kept


def _compare(places: Mapping[str, SavedTensor], state: Mapping[str, Tensor]) -> LoadReport:
    shapes = {
        key: (tuple(state[key].shape), tuple(place.tensor.shape)) for key, place in places.items() if key in state
    }
    mismatched = {key: pair for key, pair in shapes.items() if pair[0] != pair[1]}
    return LoadReport(
        loaded=tuple(key for key in shapes if key not in mismatched),
        missing_keys=tuple(key for key in places if key not in state),
        unexpected_keys=tuple(key for key in state if key not in places),
        mismatched=mismatched,
    )


def _put(place: SavedTensor, value: Tensor, assign: bool, taken: dict[int, tuple[Tensor, Tensor]]) -> None:
    """Load one tensor; ``taken`` remembers what took a tensor's place, which may stand in two modules.

    It holds the tensors themselves too, since the ids of those that are gone are given to others.
    """
    current = place.tensor
    if not assign and not current.is_meta:
        current.copy_(value)
        return
    if id(current) not in taken:
        value = value.to(current.dtype) if current.is_floating_point() else value
        value = value if current.is_meta else value.to(current.device)
        parameter = isinstance(current, nn.Parameter)
        new = nn.Parameter(value, requires_grad=current.requires_grad) if parameter else value
        taken[id(current)] = current, new
    place.store[place.name] = taken[id(current)][1]


def are_large(state: Mapping[str, Tensor]) -> bool:
    """Return whether a file's tensors are so large that making others first, to copy them into, is what would cost."""
    return sum(tensor.nbytes for tensor in state.values()) > _LARGE * len(state)


#: Bytes of a tensor that is made and written in the time that taking another one for it takes.
_LARGE = 2**16


def bring_to_layers(tuner: Tuner, report: LoadReport) -> None:
    """Move tensors that were taken from a file to the devices of their layers.

    Raises:
        CheckpointError: Some were not in the file, and have no values then.
    """
    if report.missing_keys or report.mismatched:
        raise CheckpointError(
            f"With low_cpu_mem_usage=True what the file lacks has no values at all. Load without it. {report}"
        )
    for placement in tuner.placements:
        if placement.base.device.type != "meta":
            placement.adapter.to(placement.base.device)
    first = next((placement.base for placement in tuner.placements if not placement.auxiliary), None)
    if tuner.shared is not None and first is not None and first.device.type != "meta":
        tuner.shared.to(first.device)
