"""HiRA for peftcore: W' = W + W ∘ (B · A) (openreview TwJrTz9cRS)."""

from peftcore import PeftMethod, hookimpl
from peftcore_hira.adapter import HiraAdapter
from peftcore_hira.config import HiraConfig

__all__ = ["HiraAdapter", "HiraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=HiraConfig, adapter_cls=HiraAdapter, paper="https://openreview.net/forum?id=TwJrTz9cRS"
    )
