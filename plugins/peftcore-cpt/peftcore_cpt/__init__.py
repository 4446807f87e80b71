"""CPT for peftcore: examples in front of the input whose embeddings train near their words (arXiv 2410.17222)."""

from __future__ import annotations

from peftcore.hookspecs import hookimpl
from peftcore.method import PeftMethod
from peftcore_cpt.config import CPTConfig
from peftcore_cpt.encoder import CPTEmbedding

__all__ = ["CPTConfig", "CPTEmbedding"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(name="cpt", config_cls=CPTConfig, encoder_cls=CPTEmbedding, paper="2410.17222")
