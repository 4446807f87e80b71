"""CPT for peftcore: examples in front of the input whose embeddings train near their words (arXiv 2410.17222)."""

from peftcore import PeftMethod, hookimpl
from peftcore_cpt.config import CPTConfig
from peftcore_cpt.encoder import CPTEmbedding

__all__ = ["CPTConfig", "CPTEmbedding"]


@hookimpl
def register_peft_method() -> PeftMethod:
    """Describe the method."""
    return PeftMethod(config_cls=CPTConfig, encoder_cls=CPTEmbedding, paper="2410.17222")
