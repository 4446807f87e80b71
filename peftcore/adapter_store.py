"""AdapterStore: adapters of one model, loaded when a call needs them, taken out when another needs the room."""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from peftcore.adapted_model import AdaptedModel
from peftcore.adapter_source import AdapterFiles, Adapters, AdapterSource
from peftcore.call_state import BASE
from peftcore.checkpoint import live_tensors
from peftcore.config import PeftConfig
from peftcore.exceptions import AdapterNameError, AdapterStoreError, ConfigError
from peftcore.model import PeftModel
from peftcore.tuner import Tuner
from peftcore.views import View, Viewed, number


@dataclass
class StoreCounts:
    """What a store has done so far.

    Attributes:
        hits: Adapters that calls needed and the model had.
        loads: Adapters that were loaded into the model.
        evictions: Adapters that were taken out to make room.
    """

    hits: int = 0
    loads: int = 0
    evictions: int = 0


@dataclass
class _Loaded:
    """An adapter that the store has put into the model."""

    tuner: Tuner
    nbytes: int = 0
    pins: int = 0
    _versions: list[tuple[weakref.ref[Tensor], int]] = field(default_factory=list)

    @classmethod
    def of(cls, tuner: Tuner) -> _Loaded:
        tensors = {id(tensor): tensor for tensor in _tensors(tuner)}.values()
        versions = [(weakref.ref(tensor), tensor._version) for tensor in tensors]
        return cls(tuner, sum(tensor.nbytes for tensor in tensors), 0, versions)

    def changed(self) -> bool:
        """Whether its tensors are no more what was loaded, or are about to be trained."""
        known = {id(ref()): version for ref, version in self._versions}
        return any(tensor.requires_grad or known.get(id(tensor)) != tensor._version for tensor in _tensors(self.tuner))


def _tensors(tuner: Tuner) -> Iterator[Tensor]:
    return (place.tensor for place in live_tensors(tuner))


class AdapterStore(Viewed):
    """Holds some of many adapters in a model: those that calls need now, and those that they needed last.

    ``with store.pinned(names): model(**batch, adapter_names=names)`` loads what is missing and keeps all of it in the
    model while the block runs.
    When there is no room, the adapter that was needed least recently leaves the model, and its tensors are freed.
    Adapters that somebody else put into the model are used, and neither counted nor taken out; nor does an adapter
    leave that is pinned, active, merged, or changed since it was loaded.
    What is active stays so: a plain call gives the same, whatever the store has loaded.

    Changes are told from the tensors' versions, which writes through ``tensor.data`` do not count.
    Calls on the store that touch the model belong to whoever runs the model, one at a time; :meth:`prefetch` may be
    called from any thread.
    While a call's adapters are loaded, the model holds them beside those that they replace.

    Args:
        model: A PeftModel, with adapters or without (``PeftModel(model, None)``), or a model to be adapted in place.
        adapters: A folder of adapter directories, a mapping of names to directories, or a function from a name to its
            directory that returns None for an unknown one.
        capacity: The most adapters that the store has in the model at a time.
        capacity_bytes: The most bytes of their tensors; None sets no bound.
        host_bytes: The most bytes of adapters that are kept in host memory once they are read, so that they are not
            read again; 0 keeps none.
        autocast_adapter_dtype: Keep float32 adapters on layers of a coarser dtype.

    Attributes:
        host: The adapted model.
        source: The adapters outside the model.
        counts: What the store has done so far.

    Raises:
        ConfigError: A capacity is no number above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Adapters,
        *,
        capacity: int,
        capacity_bytes: int | None = None,
        host_bytes: int = 0,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        if capacity < 1 or (capacity_bytes is not None and capacity_bytes < 1) or host_bytes < 0:
            raise ConfigError(
                f"An adapter store needs room: capacity is {capacity}, capacity_bytes {capacity_bytes}, host_bytes "
                f"{host_bytes}. The first two must be above 0, and host_bytes at least 0."
            )
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.host = _host_of(model)
        self.source = AdapterSource(adapters, host_bytes)
        self.counts = StoreCounts()
        self._autocast_adapter_dtype = autocast_adapter_dtype
        #: Completes a config by what the task says.
        self._complete: Callable[[PeftConfig], PeftConfig] = (
            model._completed if isinstance(model, PeftModel) else lambda config: config
        )
        #: What the store has put into the model, the least recently needed first.
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------------- for a call

    @contextmanager
    def pinned(self, names: str | Iterable[str]) -> Iterator[None]:
        """Have adapters in the model while the block runs.

        Args:
            names: Their names, repeated or not, as for ``adapter_names=``; ``"__base__"`` asks for none.

        Raises:
            PeftCoreError: As :meth:`ensure`.
        """
        with self._lock:
            held = self._ensure(names)
            for one in held:
                one.pins += 1
        try:
            yield
        finally:
            with self._lock:
                for one in held:
                    one.pins -= 1

    def ensure(self, names: str | Iterable[str]) -> None:
        """Have adapters in the model now, all of them or, if one can't be loaded, none more than before.

        Args:
            names: As for :meth:`pinned`.

        Raises:
            AdapterNameError: One is not known, or can't be an adapter's name.
            AdapterStoreError: There is no room for all of them.
            CheckpointError, ConfigError, TargetError, UnknownMethodError: A directory is damaged, or does not fit.
        """
        with self._lock:
            self._ensure(names)

    def prefetch(self, name: str) -> None:
        """Read an adapter into host memory, if it is neither there nor in the model; from any thread.

        Raises:
            AdapterStoreError: The store keeps nothing in host memory.
            AdapterNameError, CheckpointError, ConfigError, UnknownMethodError: It can't be read.
        """
        if not self.source.host_bytes:
            raise AdapterStoreError("The store keeps no adapters in host memory; give it host_bytes to read ahead.")
        if name != BASE and name not in self.host.tuners:
            self.source.get(name)

    # ----------------------------------------------------------------------------------- what the store holds

    def loaded(self) -> tuple[str, ...]:
        """Return the names of the adapters that the store has in the model, the least recently needed first."""
        with self._lock:
            self._forget_what_others_deleted()
            return tuple(self._loaded)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that the store has in the model."""
        return sum(one.nbytes for one in self._loaded.values())

    def drop(self, name: str, *, discard_changes: bool = False) -> None:
        """Take an adapter out of the model and of host memory, so that the next call reads its directory again.

        Args:
            name: An adapter that the store knows; one that it has not loaded is forgotten only.
            discard_changes: Take it out although it has changed since it was loaded.

        Raises:
            AdapterStoreError: It is in use, or has changed; nothing has happened then.
        """
        with self._lock:
            self._forget_what_others_deleted()
            one = self._loaded.get(name)
            if one is not None:
                why = self._why_not(name, one, self._acting())
                if why and not (discard_changes and why == _CHANGED):
                    raise AdapterStoreError(f"Adapter {name!r} can't be dropped now: it is {why}.")
                self._take_out(name)
            self.source.forget(name)

    def hand_over(self, name: str) -> None:
        """Leave an adapter in the model for good: the store neither counts it any more nor takes it out.

        Raises:
            AdapterNameError: The store has no such adapter in the model.
        """
        with self._lock:
            self._forget_what_others_deleted()
            if self._loaded.pop(name, None) is None:
                raise AdapterNameError(f"The store has loaded no adapter {name!r}.")

    def view(self) -> View:
        """Return what is loaded, a line for each adapter, the least recently needed first."""
        names, acting = self.loaded(), self._acting()
        rows = [
            (name, one.tuner.method.name, number(one.nbytes), self._why_not(name, one, acting) or "")
            for name, one in ((name, self._loaded[name]) for name in names)
        ]
        counts = self.counts
        facts = {
            "in the model": f"{len(names)} of at most {self.capacity}, {number(self.nbytes)} bytes",
            "in host memory": f"{len(self.source.kept())}, {number(self.source.nbytes)} bytes",
            "so far": f"{number(counts.hits)} hits, {number(counts.loads)} loads, {number(counts.evictions)} evictions",
        }
        return View("AdapterStore", ("adapter", "method", "bytes", "stays because it is"), rows, facts=facts)

    # ------------------------------------------------------------------------------------------------ inside

    def _ensure(self, names: str | Iterable[str]) -> list[_Loaded]:
        """Return what the store holds of the adapters named, with all of them in the model."""
        wanted = [name for name in dict.fromkeys([names] if isinstance(names, str) else names) if name != BASE]
        missing = [name for name in wanted if name not in self.host.tuners]
        if missing:
            self._bring(missing, wanted)
        self.counts.hits += len(wanted) - len(missing)
        held = [name for name in wanted if self._is_own(name)]
        for name in held:
            self._loaded.move_to_end(name)
        return [self._loaded[name] for name in held]

    def _is_own(self, name: str) -> bool:
        return name in self._loaded and self._loaded[name].tuner is self.host.tuners.get(name)

    def _forget_what_others_deleted(self) -> None:
        for name in [name for name in self._loaded if not self._is_own(name)]:
            del self._loaded[name]

    def _bring(self, missing: Sequence[str], wanted: Sequence[str]) -> None:
        """Load adapters, then let others go; if one can't be loaded, the model and the store are as before."""
        self._forget_what_others_deleted()
        self._leaving(len(missing), 0, wanted)
        for name in missing:
            self.host.check_new_name(name)
        files = {name: self.source.get(name) for name in missing}
        came: dict[str, _Loaded] = {}
        try:
            for name in missing:
                came[name] = self._load(name, files[name])
            leaving = self._leaving(len(missing), sum(one.nbytes for one in came.values()), wanted)
        except BaseException:
            for name in came:
                self.host.delete_adapter(name)
            raise
        for name in leaving:
            self._take_out(name)
        self._loaded.update(came)
        self.counts.loads += len(came)
        self.counts.evictions += len(leaving)

    def _load(self, name: str, files: AdapterFiles) -> _Loaded:
        config = copy.copy(files.config)
        config.inference_mode = True
        active = self.host.active_adapters
        with _unnoticed():
            self.host.load(
                name,
                self._complete(config),
                files.state,
                source=str(files.directory),
                autocast_adapter_dtype=self._autocast_adapter_dtype,
            )
            if self.host.active_adapters != active:
                self.host.set_adapter(active)
        return _Loaded.of(self.host.tuners[name])

    def _take_out(self, name: str) -> None:
        self.host.delete_adapter(name)
        del self._loaded[name]

    def _leaving(self, count: int, nbytes: int, wanted: Sequence[str]) -> list[str]:
        """Return which adapters have to leave for others, the least recently needed first.

        Args:
            count, nbytes: How many come, and how large they are.
            wanted: What has to stay, beside all that can't leave.

        Raises:
            AdapterStoreError: Too few can leave.
        """
        count, nbytes = count + len(self._loaded), nbytes + self.nbytes
        leaving: list[str] = []
        kept: list[str] = []
        acting = self._acting()
        for name, one in self._loaded.items():
            if self._fits(count, nbytes):
                break
            why = "needed by this call" if name in wanted else self._why_not(name, one, acting)
            if why:
                kept.append(f"{name!r} is {why}")
                continue
            leaving.append(name)
            count, nbytes = count - 1, nbytes - one.nbytes
        if not self._fits(count, nbytes):
            raise AdapterStoreError(self._no_room(count, nbytes, kept))
        return leaving

    def _fits(self, count: int, nbytes: int) -> bool:
        return count <= self.capacity and (self.capacity_bytes is None or nbytes <= self.capacity_bytes)

    def _no_room(self, count: int, nbytes: int, kept: Sequence[str]) -> str:
        if count > self.capacity:
            needed = f"{count} adapters would have to be in the model, and capacity is {self.capacity}"
        else:
            needed = f"{nbytes:,} bytes would have to be in the model, and capacity_bytes is {self.capacity_bytes:,}"
        reasons = f" {'; '.join(kept[:5])}{' …' if len(kept) > 5 else ''}." if kept else ""
        return (
            f"The store has no room: {needed}.{reasons} Ask for fewer adapters in one call, give the store more room, "
            "or save what has changed and drop() it or hand_over() it."
        )

    def _acting(self) -> dict[str, str]:
        """Return the adapters on which calls without names depend, each with why."""
        merged = {name: "merged" for layer in self.host.layers() if layer.merged for name in layer.merged_adapters}
        return {**merged, **dict.fromkeys(self.host.active_adapters, "active")}

    def _why_not(self, name: str, one: _Loaded, acting: dict[str, str]) -> str:
        """Return why an adapter can't leave the model; nothing if it can."""
        if one.pins:
            return "pinned"
        return acting.get(name) or (_CHANGED if one.changed() else "")


_CHANGED = "changed since it was loaded"


def _host_of(model: nn.Module) -> AdaptedModel:
    if isinstance(model, PeftModel):
        return model.base_model
    return model if isinstance(model, AdaptedModel) else AdaptedModel.of(model)


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Make modules in this block as if nothing was made: random numbers go on, and inference mode is for calls."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), torch.inference_mode(False):
        yield
