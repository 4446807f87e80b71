"""JSON files that hold one object each: configs, and indices of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftcore.exceptions import CheckpointError

CONFIG_NAME = "adapter_config.json"
#: Bytes; an index of a hundred thousand tensors has about ten million.
_LARGEST = 100_000_000


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that must hold one JSON object.

    Raises:
        CheckpointError: There is no such file, or it holds something else.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,d} bytes, which no adapter needs")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist. An adapter directory holds {CONFIG_NAME} beside its weights."
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number without end
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}, not an object.")
    return values
