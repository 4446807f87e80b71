"""MultitaskPromptEmbedding: one table of virtual tokens for all tasks, and two factors for each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.exceptions import TaskError
from peftcore.prompts import Batch, PromptEncoder, PromptSizes
from peftcore.prompts.starts import embedded, ids_of_text
from peftcore_multitask_prompt_tuning.config import MultitaskPromptTuningConfig, MultitaskPromptTuningInit
from peftcore_multitask_prompt_tuning.source import read_source

#: Standard deviation of what the factors start with.
_SPREAD = 0.02
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class MultitaskPromptEmbedding(PromptEncoder):
    """Virtual tokens P ∘ (U_t · V_t) for task t (arXiv 2303.02861).

    P is ``prompt_embeddings`` ``[tokens, dim]``, U_t is ``prefix_task_cols[t]`` ``[tokens, rank]`` and V_t is
    ``prefix_task_rows[t]`` ``[rank, dim]``; for an encoder-decoder model there are ``2 · tokens``.

    Raises:
        ConfigError, CheckpointError: What the prompt is to start from can't be used.
    """

    call_arguments: ClassVar[frozenset[str]] = frozenset({"task_ids"})
    config: MultitaskPromptTuningConfig

    def __init__(self, config: MultitaskPromptTuningConfig, sizes: PromptSizes, model: nn.Module) -> None:
        super().__init__(config, sizes, model)
        tasks, rank, (rows, dim) = config.num_tasks or 1, config.num_ranks or 1, self.table_shape(config)
        self.prefix_task_cols = nn.Parameter(torch.randn(tasks, rows, rank) * _SPREAD)
        self.prefix_task_rows = nn.Parameter(torch.randn(tasks, rank, dim) * _SPREAD)
        self.prompt_embeddings = nn.Parameter(torch.randn(rows, dim))
        if not config.comes_from_file:
            self._start(config, model)

    @torch.no_grad()
    def _start(self, config: MultitaskPromptTuningConfig, model: nn.Module) -> None:
        if config.prompt_tuning_init is MultitaskPromptTuningInit.TEXT:
            text, tokenizer = config.prompt_tuning_init_text or "", config.tokenizer_name_or_path or ""
            ids = ids_of_text(text, len(self.prompt_embeddings), tokenizer, config.tokenizer_kwargs)
            self.prompt_embeddings.copy_(embedded(model, ids))
        elif config.prompt_tuning_init.from_source:
            for name, tensor in read_source(config, self.state_dict()).items():
                getattr(self, name).copy_(tensor)

    def embeddings(self, batch: Batch) -> Tensor:
        """Return each row's virtual tokens, ``[rows, tokens, dim]``; those of one task for all, ``[tokens, dim]``."""
        task = self._task(batch)
        return self.prompt_embeddings * (self.prefix_task_cols[task] @ self.prefix_task_rows[task])

    def _task(self, batch: Batch) -> Tensor | int:
        """Return the task of each row, ``[rows]``, or the one that all have.

        Raises:
            TaskError: They are not said, are no integers, or are not among the tasks.
        """
        given, number = batch.argument("task_ids", "Multitask prompt tuning"), self.config.num_tasks or 1
        integers = type(given) is int or (isinstance(given, Tensor) and given.dtype in _INTEGERS)
        tasks = torch.as_tensor(given, dtype=torch.int64) if integers else None
        if tasks is None or tuple(tasks.shape) not in {(), (1,), (batch.rows,)}:
            raise TaskError(
                f"task_ids must be a tensor of integers, one for each of the {batch.rows} rows or one for all; got "
                + (f"{list(given.shape)} of {given.dtype}." if isinstance(given, Tensor) else f"{given!r}.")
            )
        different = set(tasks.reshape(-1).tolist())
        foreign = sorted(task for task in different if not 0 <= task < number)
        if foreign:
            raise TaskError(f"task_ids {foreign} are none of the adapter's {number} tasks, 0 to {number - 1}.")
        return different.pop() if len(different) == 1 else tasks.to(self.prefix_task_cols.device)
