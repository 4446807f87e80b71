"""What can be read from an adapter directory without its model and without its plugin."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcore.catalog import canonical
from peftcore.config import CONFIG_NAME, PeftConfig, read_json_object
from peftcore.exceptions import CheckpointError, PeftCoreError
from peftcore.files import read_metadata, stream_tensors

#: Fields of a config that are shown by themselves, or say nothing of the adapter.
_APART = {"peft_type", "task_type", "base_model_name_or_path", "auto_mapping", "inference_mode", "peft_version"}


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of an adapter's file.

    Attributes:
        name: Its name there.
        shape: Its sizes.
        dtype: Its dtype.
        norm: Its Frobenius norm.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float


@dataclass(frozen=True)
class AdapterFiles:
    """What an adapter directory holds.

    Attributes:
        method: The method's name; empty if the config names none.
        writer: Who wrote it, as far as the files say.
        base_model: What it was made for.
        task: The task type.
        options: The config's fields that ask for something, ranks among them.
        tensors: In the file's order.
        parameters: How many numbers they hold.
        size: Bytes of the directory's own files.
        prefix: What all names start with, up to a dot.
        problems: What is wrong, a sentence or two each.
    """

    method: str
    writer: str
    base_model: str
    task: str
    options: dict[str, Any]
    tensors: tuple[TensorFacts, ...]
    parameters: int
    size: int
    prefix: str
    problems: tuple[str, ...]


def read_adapter(directory: Path) -> AdapterFiles:
    """Read an adapter directory.

    Raises:
        CheckpointError: It holds no config, or a damaged one. What is wrong with the tensors is no error but a problem.
    """
    values = read_json_object(directory / CONFIG_NAME)
    problems: list[str] = []
    tensors, metadata = _read_tensors(directory, problems)
    config = _config(values, problems)
    problems += _tensor_problems(tensors)
    return AdapterFiles(
        method=canonical(str(values.get("peft_type") or "")),
        writer=_writer(values, metadata),
        base_model=str(values.get("base_model_name_or_path") or ""),
        task=str(values.get("task_type") or ""),
        options=_options(values, config),
        tensors=tuple(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        size=sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file()),
        prefix=_common_prefix([tensor.name for tensor in tensors]),
        problems=tuple(problems),
    )


def _read_tensors(directory: Path, problems: list[str]) -> tuple[list[TensorFacts], Mapping[str, str]]:
    tensors: list[TensorFacts] = []
    metadata: Mapping[str, str] = {}
    try:
        metadata = read_metadata(directory)
        tensors.extend(_facts(name, tensor) for name, tensor in stream_tensors(directory))
    except CheckpointError as error:
        problems.append(str(error))
    return tensors, metadata


def _facts(name: str, tensor: Tensor) -> TensorFacts:
    norm = torch.linalg.vector_norm(tensor.float() if not tensor.is_complex() else tensor.abs().float())
    return TensorFacts(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), norm.item())


def _config(values: Mapping[str, Any], problems: list[str]) -> PeftConfig | None:
    try:
        return PeftConfig.from_dict(values)
    except PeftCoreError as error:
        problems.append(str(error))
    except (TypeError, ValueError) as error:  # of values that no check foresaw
        problems.append(f"{CONFIG_NAME} can't be understood: {error}")
    return None


def _options(values: Mapping[str, Any], config: PeftConfig | None) -> dict[str, Any]:
    """Return what the config asks for: what differs from the defaults, without its plugin what is not empty."""
    if config is None:
        return {name: value for name, value in values.items() if value and name not in _APART}
    plain = config.to_dict()
    return {name: plain[name] for name in config.asked() if name not in _APART}


def _writer(values: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    if "peftcore_version" in metadata:
        plugin = metadata.get("peftcore_plugin")
        return f"peftcore {metadata['peftcore_version']}" + (f", {plugin}" if plugin else "")
    version = values.get("peft_version")
    return f"HF PEFT {version}" if version else "not given"


def _tensor_problems(tensors: Iterable[TensorFacts]) -> Iterator[str]:
    for tensor in tensors:
        if not math.isfinite(tensor.norm):
            yield f"{tensor.name} holds numbers that are not finite."
        if not math.prod(tensor.shape):
            yield f"{tensor.name} is empty."


def _common_prefix(names: list[str]) -> str:
    """Return what all of several names start with, whole components only."""
    common: list[str] = []
    for same in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(same)) > 1:
            break
        common.append(same[0])
    return ".".join([*common, ""]) if len(names) > 1 and common else ""
