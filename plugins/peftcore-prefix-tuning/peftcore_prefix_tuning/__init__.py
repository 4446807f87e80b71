"""Prefix tuning for peftcore: trained keys and values in front of every layer's own (arXiv 2101.00190)."""

from peftcore import PeftMethod, hookimpl
from peftcore_prefix_tuning.config import PrefixTuningConfig
from peftcore_prefix_tuning.encoder import PrefixEncoder

__all__ = ["PrefixEncoder", "PrefixTuningConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=PrefixTuningConfig, encoder_cls=PrefixEncoder, paper="2101.00190")
