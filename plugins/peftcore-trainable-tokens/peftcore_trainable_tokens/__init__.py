"""Trainable tokens for peftcore: E' = E with the rows of some tokens replaced by trained ones."""

from peftcore import PeftMethod, hookimpl
from peftcore_trainable_tokens.adapter import TrainableTokensAdapter
from peftcore_trainable_tokens.config import TrainableTokensConfig
from peftcore_trainable_tokens.tuner import TrainableTokensTuner

__all__ = ["TrainableTokensAdapter", "TrainableTokensConfig", "TrainableTokensTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=TrainableTokensConfig, adapter_cls=TrainableTokensAdapter, tuner_cls=TrainableTokensTuner
    )
