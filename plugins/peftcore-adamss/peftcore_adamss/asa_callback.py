"""AdamssAsaCallback: adaptive subspace allocation in transformers' Trainer; importing it imports transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class AdamssAsaCallback(TrainerCallback):
    """Lets the adapters of the model in training choose their clusters after each step of the optimizer."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Call the model's ``update_and_allocate``, while the gradients are still there."""
        model.update_and_allocate(state.global_step)
