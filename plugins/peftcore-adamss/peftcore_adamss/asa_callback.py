"""AdamssAsaCallback: adaptive subspace allocation in transformers' Trainer; importing it imports transformers."""

from __future__ import annotations

from peftcore.trainer_callback import UpdateAndAllocate


class AdamssAsaCallback(UpdateAndAllocate):
    """Lets the adapters of the model in training choose their clusters after each step of the optimizer."""
