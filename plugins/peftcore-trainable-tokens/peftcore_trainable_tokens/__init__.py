"""Trainable tokens for peftcore: E' = E with the rows of some tokens replaced by trained ones."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore_trainable_tokens.adapter import TrainableTokensAdapter
from peftcore_trainable_tokens.config import TrainableTokensConfig
from peftcore_trainable_tokens.tuner import TrainableTokensTuner

__all__ = ["TrainableTokensAdapter", "TrainableTokensConfig", "TrainableTokensTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        name="trainable_tokens",
        config_cls=TrainableTokensConfig,
        adapter_cls=TrainableTokensAdapter,
        tuner_cls=TrainableTokensTuner,
    )
