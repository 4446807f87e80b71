"""Adapter directories: read and written as HF PEFT does, strictly and atomically.

A directory holds ``adapter_config.json`` and ``adapter_model.safetensors``.
The names in the file follow from the structure: for each part of the adapter, the part's key and the names of its
adapter module's own state. No name is ever cut up or searched for an adapter's name.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from importlib_metadata import version
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from peftcore.config import CONFIG_NAME, PeftConfig, read_json_object
from peftcore.exceptions import CheckpointError
from peftcore.registry import registry
from peftcore.targets import NearestNames
from peftcore.tuner import Tuner

SAFETENSORS_NAME = "adapter_model.safetensors"
INDEX_NAME = "adapter_model.safetensors.index.json"
BIN_NAME = "adapter_model.bin"
#: What the names of tensors in layers start with; a constant of the format.
PREFIX = "base_model.model."


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
        _collect(prefix, module, found)
    return found


def _collect(prefix: str, module: nn.Module, found: dict[str, SavedTensor]) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found[f"{prefix}.{name}"] = SavedTensor(module, name)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            found[f"{prefix}.{name}"] = SavedTensor(module, name)
    for name, child in module._modules.items():
        if child is not None:
            _collect(f"{prefix}.{name}", child, found)


def adapter_state(tuner: Tuner) -> dict[str, Tensor]:
    """Return an adapter's tensors under the file's names, detached, not copied."""
    return {key: place.tensor.detach() for key, place in saved_tensors(tuner).items()}


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
    state = _with_prefix(state, places)
    report = _compare(places, state)
    if strict and not (report.complete or (ignore_mismatched_sizes and _only_shapes(report))):
        raise CheckpointError(f"The file does not fit adapter {tuner.name!r} ({tuner.method.name}). {report}")
    for key in report.loaded:
        _put(places[key], state[key], assign)
    return report


def _only_shapes(report: LoadReport) -> bool:
    return not (report.missing_keys or report.unexpected_keys)


def rename_keys(state: Mapping[str, Tensor], mapping: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Return a state under other names.

    Args:
        state: By the file's names.
        mapping: Regular expressions and what to write instead, applied to the part behind ``base_model.model.``; of
            several that fit, the first counts.
    """
    if not mapping:
        return state
    return {_renamed(key, mapping): value for key, value in state.items()}


def _renamed(key: str, mapping: Mapping[str, str]) -> str:
    prefix, path = (PREFIX, key[len(PREFIX) :]) if key.startswith(PREFIX) else ("", key)
    for pattern, replacement in mapping.items():
        renamed, number = re.subn(pattern, replacement, path)
        if number:
            return prefix + renamed
    return key


def writer_of(method: str) -> dict[str, str]:
    """Return what a file says about who wrote it: the core, and the plugin of the method."""
    writer = {"peftcore_version": version("peftcore"), "peftcore_method": method}
    if method not in registry.catalog.in_process:
        claim = registry.catalog.claim(method)
        writer["peftcore_plugin"] = f"{claim.distribution} {claim.version}"
    return writer


def _with_prefix(state: Mapping[str, Tensor], places: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Give names that come from a model adapted in place the prefix that files have."""
    if any(key in places for key in state):
        return state
    prefixed = {PREFIX + key: value for key, value in state.items()}
    return prefixed if any(key in places for key in prefixed) else state


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


def _put(place: SavedTensor, value: Tensor, assign: bool) -> None:
    current = place.tensor
    if not assign and not current.is_meta:
        current.copy_(value)
        return
    value = value.to(current.dtype) if current.is_floating_point() else value
    if isinstance(current, nn.Parameter):
        value = nn.Parameter(value, requires_grad=current.requires_grad)
    place.store[place.name] = value


# --------------------------------------------------------------------------------------------- on the disk


def write_directory(
    directory: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    config: PeftConfig,
    metadata: Mapping[str, str],
    *,
    safe_serialization: bool = True,
    max_shard_size: int | None = None,
) -> list[Path]:
    """Write an adapter directory; each file appears whole or not at all, and the config last.

    Args:
        directory: Made if need be.
        state: The tensors under the file's names.
        config: What goes into ``adapter_config.json``.
        metadata: Strings for the head of the safetensors file; other readers pass over them.
        safe_serialization: False writes ``adapter_model.bin``.
        max_shard_size: Bytes; larger adapters are split over several files with an index.

    Raises:
        CheckpointError: The directory can't be written.
    """
    path = Path(directory)
    tensors = _separate(state)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not safe_serialization:
            written = [_atomically(path / BIN_NAME, lambda target: torch.save(tensors, target))]
        else:
            written = _write_shards(path, tensors, {"format": "pt", **metadata}, max_shard_size)
        text = config.to_json_string()
        written.append(_atomically(path / CONFIG_NAME, lambda target: target.write_text(text, encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be written: {error}. Choose a directory that is writable and has room."
        ) from error
    _remove_stale(path, written)
    return written


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no storage, as safetensors asks."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        tensor = tensor.contiguous()
        where = tensor.untyped_storage().data_ptr()
        if tensor.numel() and (
            where in seen or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        ):
            tensor = tensor.clone()
        seen.add(where)
        separate[name] = tensor
    return separate


def _write_shards(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], limit: int | None) -> list[Path]:
    shards = _split(tensors, limit)
    if len(shards) == 1:
        return [_atomically(path / SAFETENSORS_NAME, lambda target: save_file(tensors, target, metadata))]
    names = [f"adapter_model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    written = [
        _atomically(path / name, lambda target, shard=shard: save_file(shard, target, metadata))  # type: ignore[misc]
        for name, shard in zip(names, shards, strict=True)
    ]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
    return [*written, _atomically(path / INDEX_NAME, lambda target: target.write_text(index, encoding="utf-8"))]


def _split(tensors: Mapping[str, Tensor], limit: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        here = tensor.numel() * tensor.element_size()
        if limit is not None and shards[-1] and size + here > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += here
    return shards


def _atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let a file be written beside its place, brought to the disk, and renamed into it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _remove_stale(path: Path, written: Sequence[Path]) -> None:
    """Remove weights that an earlier save left in another form: readers would prefer or mix them."""
    for pattern in (SAFETENSORS_NAME, INDEX_NAME, BIN_NAME, "adapter_model-*-of-*.safetensors"):
        for old in path.glob(pattern):
            if old not in written:
                old.unlink()


def read_tensors(directory: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read an adapter directory's tensors: safetensors, sharded safetensors, or a legacy ``.bin`` without running code.

    Raises:
        CheckpointError: There are none, or they are damaged.
    """
    path = Path(directory)
    if (path / SAFETENSORS_NAME).is_file():
        return _read_safetensors(path / SAFETENSORS_NAME, device)
    if (path / INDEX_NAME).is_file():
        return _read_shards(path, device)
    if (path / BIN_NAME).is_file():
        return _read_bin(path / BIN_NAME, device)
    raise CheckpointError(
        f"{path} holds no adapter: neither {SAFETENSORS_NAME} nor {INDEX_NAME} nor {BIN_NAME} is there."
    )


def _read_safetensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}. Copy it again from where it came."
        ) from error


def _read_shards(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    weight_map = read_json_object(path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path / INDEX_NAME} has no weight_map.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path / INDEX_NAME} names {name!r}, which lies outside the directory.")
        tensors.update(_read_safetensors(path / name, device))
    if lost := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(f"{path / INDEX_NAME} promises tensors that its files lack: {', '.join(lost[:5])}.")
    return tensors


def _read_bin(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors, which is never loaded: {error}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no mapping of names to tensors.")
    return tensors
