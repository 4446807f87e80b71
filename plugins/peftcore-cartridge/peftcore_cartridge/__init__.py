"""Cartridges for peftcore: keys and values that stand for a text, trained themselves (arXiv 2506.06266)."""

from peftcore import PeftMethod, hookimpl
from peftcore_cartridge.composing import compose_cartridge_adapters
from peftcore_cartridge.config import CartridgeConfig
from peftcore_cartridge.encoder import CartridgeEncoder
from peftcore_cartridge.prefill import (
    initialize_kv_prefix_from_past_key_values,
    initialize_kv_prefix_from_text,
    prompt_embeddings_from_past_key_values,
)

__all__ = [
    "CartridgeConfig",
    "CartridgeEncoder",
    "compose_cartridge_adapters",
    "initialize_kv_prefix_from_past_key_values",
    "initialize_kv_prefix_from_text",
    "prompt_embeddings_from_past_key_values",
]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=CartridgeConfig, encoder_cls=CartridgeEncoder, paper="2506.06266")
