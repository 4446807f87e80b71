"""Prompt tuning for peftcore: trained embeddings in front of the tokens' (arXiv 2104.08691)."""

from peftcore import PeftMethod, hookimpl
from peftcore_prompt_tuning.config import PromptTuningConfig, PromptTuningInit
from peftcore_prompt_tuning.encoder import PromptEmbedding

__all__ = ["PromptEmbedding", "PromptTuningConfig", "PromptTuningInit"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=PromptTuningConfig, encoder_cls=PromptEmbedding, paper="2104.08691")
