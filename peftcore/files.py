"""Adapter directories on the disk: written atomically, read without running code.

A directory holds ``adapter_config.json`` and ``adapter_model.safetensors``, as HF PEFT's do.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
    from safetensors import SafetensorError

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
        storage = tensor.untyped_storage()
        where = storage.data_ptr()
        if tensor.numel() and (where in seen or storage.nbytes() != tensor.nbytes):
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
    from safetensors.torch import save_file

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
    return dict(stream_tensors(directory, device))


def stream_tensors(
    directory: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Yield what :func:`read_tensors` returns, one tensor after the other, so that not all have to be in memory."""
    path = Path(directory)
    if (path / SAFETENSORS_NAME).is_file():
        yield from _stream_safetensors(path / SAFETENSORS_NAME, device)
    elif (path / INDEX_NAME).is_file():
        yield from _stream_shards(path, device)
    elif (path / BIN_NAME).is_file():
        yield from _read_bin(path / BIN_NAME, device).items()
    else:
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
    return dict(_stream_safetensors(path, device)) if path.suffix == ".safetensors" else _read_bin(path, device)


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, str]:
    """Return the strings at the head of an adapter directory's safetensors file; empty for other files.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = Path(directory)
    if not (path / SAFETENSORS_NAME).is_file() and (path / INDEX_NAME).is_file():
        name = min(_weight_map(path).values(), default="")
    else:
        name = SAFETENSORS_NAME
    if not (path / name).is_file():
        return {}
    with _opened(path / name, "cpu") as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path, device: str | torch.device) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}. Copy it again from where it came."
        ) from error


def _stream_safetensors(path: Path, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    with _opened(path, device) as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            yield name, file.get_tensor(name)


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path / INDEX_NAME} has no weight_map.")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path / INDEX_NAME} names {name!r}, which is no file in the directory.")
    return weight_map


def _stream_shards(path: Path, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    weight_map = _weight_map(path)
    lost = set(weight_map)
    for name in sorted(set(weight_map.values())):
        for key, tensor in _stream_safetensors(path / name, device):
            lost.discard(key)
            yield key, tensor
    if lost:
        raise CheckpointError(
            f"{path / INDEX_NAME} promises tensors that its files lack: {', '.join(sorted(lost)[:5])}."
        )


def _read_bin(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        _check_packing(path)
        tensors = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors, which is never loaded: {error}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no mapping of names to tensors.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} is no adapter's: {name} claims more numbers than the file holds.")
    return tensors


def _check_packing(path: Path) -> None:
    """Refuse a compressed archive: torch writes none, and a small one may unpack to more than there is memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CheckpointError("it is compressed, which torch's own files are not.")
