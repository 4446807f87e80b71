"""MultitaskPromptTuningConfig: what multitask prompt tuning can be asked."""

from __future__ import annotations

import enum
from typing import Any

from peftcore.config import option
from peftcore.prompts import PromptConfig


class MultitaskPromptTuningInit(str, enum.Enum):
    """Where the prompt and the tasks' factors start."""

    TEXT = "TEXT"
    """The prompt at the tokens of a text."""
    RANDOM = "RANDOM"
    """At random numbers."""
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    """At a source's prompt, each task's factors at the mean of those of the source's tasks."""
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    """At a source's prompt, each task's factors at those of one of the source's tasks."""
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"
    """At a source's prompt, the factors at random."""

    @property
    def from_source(self) -> bool:
        """Whether it starts from a prompt that was trained before."""
        return self not in (type(self).TEXT, type(self).RANDOM)


class MultitaskPromptTuningConfig(PromptConfig, method="multitask_prompt_tuning"):
    """Multitask prompt tuning: a prompt for all tasks times a matrix of low rank for each (arXiv 2303.02861).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    prompt_tuning_init: MultitaskPromptTuningInit = option(
        MultitaskPromptTuningInit.RANDOM,
        "Where training starts: RANDOM, TEXT, AVERAGE_SOURCE_TASKS, EXACT_SOURCE_TASK or ONLY_SOURCE_SHARED.",
    )
    prompt_tuning_init_text: str | None = option(None, "The text for TEXT; repeated or cut to the number of tokens.")
    tokenizer_name_or_path: str | None = option(None, "The tokenizer for TEXT.")
    tokenizer_kwargs: dict[str, Any] | None = option(None, "Keywords for loading the tokenizer.")
    prompt_tuning_init_state_dict_path: str | None = option(
        None, "The source's file, or its adapter directory: safetensors, or tensors saved by torch."
    )
    prompt_tuning_init_task: int | None = option(0, "Which of the source's tasks, for EXACT_SOURCE_TASK.", at_least=0)
    num_ranks: int | None = option(1, "Rank of each task's matrix.", at_least=1)
    num_tasks: int | None = option(1, "Number of tasks.", at_least=1)

    def validate(self) -> None:
        """Check the fields, and that a start comes with what it starts from."""
        super().validate()
        self.require("num_ranks", "num_tasks")
        start = self.prompt_tuning_init
        needed = ["prompt_tuning_init_state_dict_path"] if start.from_source else []
        if start is MultitaskPromptTuningInit.TEXT:
            needed = ["prompt_tuning_init_text", "tokenizer_name_or_path"]
        elif self.tokenizer_kwargs:
            self.refuse("tokenizer_kwargs", "goes with prompt_tuning_init='TEXT' alone")
        if start is MultitaskPromptTuningInit.EXACT_SOURCE_TASK:
            needed.append("prompt_tuning_init_task")
        self.require(*needed, because=f" with prompt_tuning_init={start.value!r}")
