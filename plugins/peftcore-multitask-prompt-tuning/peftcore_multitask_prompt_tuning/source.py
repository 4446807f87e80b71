"""The source: a prompt of several tasks, from which another one starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from peftcore.exceptions import CheckpointError
from peftcore.files import read_tensor_file, read_tensors
from peftcore_multitask_prompt_tuning.config import MultitaskPromptTuningConfig, MultitaskPromptTuningInit

_SHARED = "prompt_embeddings"
_OF_TASKS = ("prefix_task_cols", "prefix_task_rows")


def read_source(config: MultitaskPromptTuningConfig, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an adapter takes from its source, by name.

    Args:
        config: Says which source, and what to take.
        own: The adapter's tensors, which the source's have to fit.

    Raises:
        CheckpointError: The source can't be read, or does not fit.
        ConfigError: It has no such task.
    """
    path = Path(config.prompt_tuning_init_state_dict_path or "")
    source = read_tensors(path) if path.is_dir() else read_tensor_file(path)
    taken = {_SHARED: _tensor(source, _SHARED, path)}
    if config.prompt_tuning_init is not MultitaskPromptTuningInit.ONLY_SOURCE_SHARED:
        taken |= {name: _of_task(_tensor(source, name, path), config) for name in _OF_TASKS}
    for name, tensor in taken.items():
        wanted = own[name].shape[-2:]
        if tensor.shape[-2:] != wanted:
            raise CheckpointError(
                f"{path}: {name} is {list(tensor.shape[-2:])} for a task, and the new adapter needs {list(wanted)}. "
                "num_virtual_tokens, num_ranks and the model's width have to be the source's."
            )
    return taken


def _tensor(source: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    found = source.get(name)
    if not isinstance(found, Tensor):
        raise CheckpointError(f"{path} holds no {name}: it is no file of multitask prompt tuning.")
    return found


def _of_task(factors: Tensor, config: MultitaskPromptTuningConfig) -> Tensor:
    """Return the factors of the source's task that is wanted, or the mean of all, ``[1, …]``."""
    if config.prompt_tuning_init is MultitaskPromptTuningInit.AVERAGE_SOURCE_TASKS:
        return factors.mean(0, keepdim=True)
    task = config.prompt_tuning_init_task or 0
    if task >= len(factors):
        config.refuse("prompt_tuning_init_task", f"is {task}, and the source has {len(factors)} tasks")
    return factors[task : task + 1]
