"""Composing: several cartridges, one behind the other, as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from peftcore.checkpoint import writer_of
from peftcore.config import PeftConfig
from peftcore.exceptions import CheckpointError
from peftcore.files import read_tensors, write_directory
from peftcore_cartridge.config import CartridgeConfig

#: What has to be the same in all.
_SIZES = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "task_type")


def compose_cartridge_adapters(
    adapter_paths: Sequence[str | os.PathLike[str]],
    *,
    output_path: str | os.PathLike[str],
    safe_serialization: bool = True,
) -> None:
    """Write an adapter that holds the virtual tokens of several cartridges, one behind the other (arXiv 2506.06266).

    As many of its tokens are frozen as in the first one.

    Args:
        adapter_paths: Adapter directories, two at least, of one base model.
        output_path: The directory to write, made if need be.
        safe_serialization: False writes ``adapter_model.bin``.

    Raises:
        CheckpointError: They don't go together, one of them is no cartridge, or a file is missing or damaged.
    """
    if len(adapter_paths) < 2:
        raise CheckpointError(f"Two cartridges at least can be composed, got {len(adapter_paths)}.")
    configs = [_config(path) for path in adapter_paths]
    tables = [_table(path) for path in adapter_paths]
    for path, config, table in zip(adapter_paths, configs, tables, strict=True):
        for name in _SIZES:
            first, here = getattr(configs[0], name), getattr(config, name)
            if here != first:
                raise CheckpointError(
                    f"{path} has {name}={here}, and {adapter_paths[0]} {first}: they don't go together."
                )
        if table.shape[1:] != tables[0].shape[1:] or table.dim() != 2:
            raise CheckpointError(f"{path} holds a table of shape {list(table.shape)}: it comes from another model.")
    table = torch.cat(tables)
    config = replace(configs[0], num_virtual_tokens=len(table), inference_mode=True)
    state = {"prompt_embeddings": table}
    write_directory(output_path, state, config, writer_of("cartridge"), safe_serialization=safe_serialization)


def _config(path: str | os.PathLike[str]) -> CartridgeConfig:
    config = PeftConfig.from_pretrained(path)
    if not isinstance(config, CartridgeConfig):
        raise CheckpointError(f"{path} holds an adapter of method {config.method!r}, and no cartridge.")
    return config


def _table(path: str | os.PathLike[str]) -> Tensor:
    state = read_tensors(path)
    others = sorted(set(state) - {"prompt_embeddings"})
    if others or not state:
        raise CheckpointError(
            f"{path} holds {', '.join(others) or 'no tensor'}: only cartridges without modules to save can be composed."
        )
    return state["prompt_embeddings"]
