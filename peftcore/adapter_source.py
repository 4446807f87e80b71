"""Where a store's adapters come from: directories found by name, read by any thread, kept in host memory.

Nothing here touches a model, so that threads can read ahead while the model is at work.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from peftcore.config import PeftConfig
from peftcore.exceptions import AdapterNameError
from peftcore.files import read_tensors
from peftcore.targets import NearestNames

#: A folder of adapter directories, their paths by name, or what finds a name's path (None: there is none).
Adapters = (
    str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Callable[[str], "str | os.PathLike[str] | None"]
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter directory as it was read.

    Attributes:
        directory: Where it was read from.
        config: What it says of itself.
        state: Its tensors by the file's names; to be copied, never to be changed.
    """

    directory: Path
    config: PeftConfig
    state: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.state.values())


class AdapterSource:
    """Adapters by name; what was read stays in host memory as far as there is room, the least recently used goes.

    All methods may be called from several threads; a directory that several ask for at a time is read once.

    Args:
        adapters: A folder of adapter directories, a mapping of names to directories, or a function from a name to its
            directory that returns None (or raises KeyError) for an unknown one.
        host_bytes: The most bytes that are kept; 0 keeps nothing.
    """

    def __init__(self, adapters: Adapters, host_bytes: int = 0) -> None:
        self.host_bytes = host_bytes
        #: Bytes that are kept.
        self.nbytes = 0
        #: How often a directory was read.
        self.reads = 0
        self._adapters = adapters if callable(adapters) or isinstance(adapters, Mapping) else Path(adapters)
        self._kept: OrderedDict[str, AdapterFiles] = OrderedDict()
        self._reading: dict[str, Future[AdapterFiles]] = {}
        self._lock = threading.Lock()

    def kept(self) -> tuple[str, ...]:
        """Return the names that are in host memory, the least recently used first."""
        with self._lock:
            return tuple(self._kept)

    def get(self, name: str) -> AdapterFiles:
        """Return an adapter's files, from host memory or read from the disk.

        Raises:
            AdapterNameError: There is no adapter of that name.
            CheckpointError, ConfigError, UnknownMethodError: Its directory is damaged, or no adapter's.
        """
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            reading = self._reading.get(name)
            if reading is None:
                mine = self._reading[name] = Future()
        if reading is not None:
            return reading.result()
        try:
            files = self._read(name)
        except BaseException as error:
            self._finish(name, mine, None)
            mine.set_exception(error)
            raise
        self._finish(name, mine, files)
        mine.set_result(files)
        return files

    def forget(self, name: str) -> None:
        """Let go of what was read of an adapter: whoever asks next gets what is on the disk then."""
        with self._lock:
            self._reading.pop(name, None)
            self._let_go(name)

    def _finish(self, name: str, reading: Future[AdapterFiles], files: AdapterFiles | None) -> None:
        """Keep what was read, unless it was to be forgotten meanwhile."""
        with self._lock:
            if self._reading.get(name) is not reading:
                return
            del self._reading[name]
            if files is None or not 0 < files.nbytes <= self.host_bytes:
                return
            self._kept[name] = files
            self.nbytes += files.nbytes
            while self.nbytes > self.host_bytes:
                self._let_go(next(iter(self._kept)))

    def _let_go(self, name: str) -> None:
        files = self._kept.pop(name, None)
        if files is not None:
            self.nbytes -= files.nbytes

    def _read(self, name: str) -> AdapterFiles:
        directory = self.directory(name)
        config, state = PeftConfig.from_pretrained(directory), read_tensors(directory)
        with self._lock:
            self.reads += 1
        if self.host_bytes:
            # What was read is a view of the file, whose pages may leave the memory at any time.
            state = {key: tensor.clone() for key, tensor in state.items()}
        return AdapterFiles(directory, config, state)

    def directory(self, name: str) -> Path:
        """Return the directory of an adapter.

        Raises:
            AdapterNameError: There is no adapter of that name.
        """
        found: str | os.PathLike[str] | None
        if isinstance(self._adapters, Path):
            path = self._adapters / name
            inside = Path(name).name == name not in ("", "..")
            found = path if inside and path.is_dir() else None
        elif isinstance(self._adapters, Mapping):
            found = self._adapters.get(name)
        else:
            try:
                found = self._adapters(name)
            except KeyError:
                found = None
        if found is None:
            near = NearestNames(self._names()).to_name(name)
            advice = f" Did you mean {near[0]!r}?" if near else ""
            raise AdapterNameError(f"There is no adapter {name!r}, neither in the model nor in the store.{advice}")
        return Path(found)

    def _names(self) -> Iterable[str]:
        if isinstance(self._adapters, Mapping):
            return list(self._adapters)
        if isinstance(self._adapters, Path) and self._adapters.is_dir():
            return sorted(entry.name for entry in self._adapters.iterdir() if entry.is_dir())
        return ()
