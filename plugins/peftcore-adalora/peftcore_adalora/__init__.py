"""AdaLoRA for peftcore: W' = W + s · B · diag(E) · A, with ranks that go to the layers in need (arXiv 2303.10512)."""

from peftcore import PeftMethod, hookimpl
from peftcore_adalora.adapter import AdaLoraAdapter
from peftcore_adalora.config import AdaLoraConfig
from peftcore_adalora.default_targets import TARGETS
from peftcore_adalora.tuner import AdaLoraTuner

__all__ = ["AdaLoraAdapter", "AdaLoraConfig", "AdaLoraTuner"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(
        config_cls=AdaLoraConfig,
        adapter_cls=AdaLoraAdapter,
        tuner_cls=AdaLoraTuner,
        prefix="lora_",
        shares_prefix=True,
        default_targets=TARGETS,
        paper="2303.10512",
    )
