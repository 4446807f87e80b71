"""Multitask prompt tuning for peftcore: one prompt, times a matrix of low rank per task (arXiv 2303.02861)."""

from peftcore import PeftMethod, hookimpl
from peftcore_multitask_prompt_tuning.config import MultitaskPromptTuningConfig, MultitaskPromptTuningInit
from peftcore_multitask_prompt_tuning.encoder import MultitaskPromptEmbedding

__all__ = ["MultitaskPromptEmbedding", "MultitaskPromptTuningConfig", "MultitaskPromptTuningInit"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=MultitaskPromptTuningConfig, encoder_cls=MultitaskPromptEmbedding, paper="2303.02861")
