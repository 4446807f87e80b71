"""Adaption prompts for peftcore: tokens that attention sees through a gate, LLaMA-Adapter (arXiv 2303.16199)."""

from peftcore import PeftMethod, hookimpl
from peftcore_adaption_prompt.adapter import AdaptionPromptAdapter
from peftcore_adaption_prompt.config import AdaptionPromptConfig
from peftcore_adaption_prompt.default_targets import TARGETS
from peftcore_adaption_prompt.tuner import AdaptionPromptTuner

__all__ = ["AdaptionPromptAdapter", "AdaptionPromptConfig", "AdaptionPromptTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=AdaptionPromptConfig,
        adapter_cls=AdaptionPromptAdapter,
        tuner_cls=AdaptionPromptTuner,
        prefix="adaption_",
        default_targets=TARGETS,
        paper="2303.16199",
    )
