"""Where an adapter directory is: on the disk, or fetched from the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from peftcore.config import CONFIG_NAME
from peftcore.exceptions import CheckpointError

#: Keywords that are passed on to the hub.
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def resolve_directory(model_id: str | os.PathLike[str], arguments: dict[str, Any]) -> Path:
    """Return the directory of an adapter; what is no folder on the disk is asked of the hub.

    Args:
        model_id: A folder, or ``owner/name`` on the hub.
        arguments: A caller's keywords, of which ``subfolder`` and the hub's are taken out.

    Raises:
        CheckpointError: There is no such folder, and the hub can't be asked or does not have it.
    """
    subfolder = arguments.pop("subfolder", None) or ""
    hub = {name: arguments.pop(name) for name in _HUB_ARGUMENTS if name in arguments}
    path = Path(model_id)
    if path.is_dir() or not _could_be_on_hub(str(model_id)):
        return path / subfolder
    return _download(str(model_id), subfolder, hub) / subfolder


def _could_be_on_hub(model_id: str) -> bool:
    return model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")) and not model_id.endswith("/")


def _download(model_id: str, subfolder: str, arguments: dict[str, Any]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{model_id} is no folder here, and asking the hub for it needs huggingface_hub: pip install peftcore[hf]"
        ) from None
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [f"{prefix}{CONFIG_NAME}", f"{prefix}adapter_model*"]
    try:
        return Path(snapshot_download(model_id, allow_patterns=wanted, **arguments))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model_id} is no folder here, and the hub does not give it: {error}") from error
