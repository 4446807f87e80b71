"""DeLoRA for peftcore: W' = W + (λ / r) · B · Ξ · A · diag(‖W‖), direction and distance apart (arXiv 2503.18225)."""

from peftcore import PeftMethod, hookimpl
from peftcore_delora.adapter import DeloraAdapter
from peftcore_delora.config import DeloraConfig

__all__ = ["DeloraAdapter", "DeloraConfig"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=DeloraConfig, adapter_cls=DeloraAdapter, paper="2503.18225")
