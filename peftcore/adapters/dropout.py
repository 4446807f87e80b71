"""Dropout of a layer's inputs, as an adapter sees them."""

from __future__ import annotations

from torch import nn

from peftcore.base_layers.base import BaseLayer
from peftcore.config import PeftConfig


def input_dropout(base: BaseLayer, config: PeftConfig, field: str) -> nn.Module:
    """Return what drops entries of a layer's input in training, before Δ acts on it; nothing is dropped of token ids.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the probability.

    Raises:
        ConfigError: The layer uses its weight as a whole, so that inputs do not pass through the adapter.
    """
    probability = getattr(config, field)
    if not probability or base.kind == "embedding":
        return nn.Identity()
    if not (base.additive or config.inference_mode):
        config.refuse(
            field,
            "acts on the input, which does not pass through the adapter where the weight is used as a whole: "
            f"leave it out, or exclude the {type(base.layer).__name__} (kind {base.kind})",
        )
    return nn.Dropout(probability)
