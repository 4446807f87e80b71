"""P-tuning for peftcore: virtual tokens that a small network makes (arXiv 2103.10385)."""

from peftcore import PeftMethod, hookimpl
from peftcore_p_tuning.config import PromptEncoderConfig, PromptEncoderReparameterizationType
from peftcore_p_tuning.encoder import PTuningEncoder

__all__ = ["PTuningEncoder", "PromptEncoderConfig", "PromptEncoderReparameterizationType"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=PromptEncoderConfig, encoder_cls=PTuningEncoder, paper="2103.10385")
