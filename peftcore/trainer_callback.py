"""UpdateAndAllocate: lets adapters act after each step of transformers' Trainer; importing it imports transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class UpdateAndAllocate(TrainerCallback):
    """Calls ``update_and_allocate`` of the model in training, for methods that act after a step of the optimizer."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Call it while the gradients are still there."""
        model.update_and_allocate(state.global_step)
