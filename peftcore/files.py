"""Adapter directories on the disk: written atomically, read without running code.

A directory holds ``adapter_config.json`` and ``adapter_model.safetensors``, as HF PEFT's do.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftcore.config import CONFIG_NAME, PeftConfig, read_json_object
from peftcore.exceptions import CheckpointError

SAFETENSORS_NAME = "adapter_model.safetensors"
INDEX_NAME = "adapter_model.safetensors.index.json"
BIN_NAME = "adapter_model.bin"

#: Writes one file.
Writer = Callable[[Path], object]


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
    head = {"format": "pt", **metadata}
    writers = _shard_writers(tensors, head, max_shard_size) if safe_serialization else _bin_writers(tensors)
    # The config last: a reader that finds a new one finds the new tensors.
    writers[CONFIG_NAME] = _text_writer(config.to_json_string())
    try:
        path.mkdir(parents=True, exist_ok=True)
        written = _write_together(path, writers)
    except (OSError, SafetensorError, RuntimeError) as error:  # the writers of tensors wrap a full disk each in its own
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


def _shard_writers(tensors: dict[str, Tensor], head: dict[str, str], limit: int | None) -> dict[str, Writer]:
    shards = _split(tensors, limit)
    if len(shards) == 1:
        return {SAFETENSORS_NAME: _tensor_writer(tensors, head)}
    names = [f"adapter_model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
    writers = {name: _tensor_writer(shard, head) for name, shard in zip(names, shards, strict=True)}
    return {**writers, INDEX_NAME: _text_writer(index)}


def _tensor_writer(tensors: dict[str, Tensor], head: dict[str, str]) -> Writer:
    return lambda target: save_file(tensors, target, head)


def _bin_writers(tensors: dict[str, Tensor]) -> dict[str, Writer]:
    return {BIN_NAME: lambda target: torch.save(tensors, target)}


def _text_writer(text: str) -> Writer:
    return lambda target: target.write_text(text, encoding="utf-8")


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


def _write_together(directory: Path, writers: Mapping[str, Writer]) -> list[Path]:
    """Write files beside their places and bring them to the disk; only when all are there, rename them into place."""
    temporary: dict[Path, Path] = {}
    try:
        for name, write in writers.items():
            temporary[directory / name] = target = _temporary_file(directory, name)
            write(target)
            with open(target, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(target, 0o666 & ~_umask())
        for place, target in temporary.items():
            os.replace(target, place)
    except BaseException:
        for target in temporary.values():
            target.unlink(missing_ok=True)
        raise
    return list(temporary)


def _temporary_file(directory: Path, name: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    os.close(handle)
    return Path(path)


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


def read_tensor_file(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read the tensors of one file, safetensors or, without running code from it, torch's own format.

    Raises:
        CheckpointError: It is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    return _read_safetensors(path, device) if path.suffix == ".safetensors" else _read_bin(path, device)


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
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path / INDEX_NAME} names {name!r}, which is no file in the directory.")
    for name in sorted(set(weight_map.values())):
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
