"""Dropout of what goes through an adapter, and the layers on which there is no such thing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from peftcore.base_layers.base import BaseLayer
from peftcore.config import PeftConfig


def check_dropout(base: BaseLayer, config: PeftConfig, field: str) -> None:
    """Check that dropout of a layer's input, or of Δ's share of its output, can act if the config asks for it.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the probability.

    Raises:
        ConfigError: The layer uses its weight as a whole, and the adapter is to be trained.
    """
    if getattr(config, field) > 0 and not (base.additive or config.inference_mode):
        config.refuse(
            field,
            "acts on the input of Δ or on what Δ adds to the output, and neither passes through the adapter where the "
            f"weight is used as a whole: leave it out, or exclude the {base}",
        )


def input_dropout(base: BaseLayer, config: PeftConfig, field: str) -> nn.Module:
    """Return what drops entries of a layer's input in training, before Δ acts on it; nothing is dropped of token ids.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the probability.

    Raises:
        ConfigError: As :func:`check_dropout`.
    """
    probability = getattr(config, field)
    if not probability or base.kind == "embedding":
        return nn.Identity()
    check_dropout(base, config, field)
    return nn.Dropout(probability)


def drops(dropout: nn.Module) -> bool:
    """Whether what :func:`input_dropout` returned would now drop something."""
    return dropout.training and not isinstance(dropout, nn.Identity)


def with_part_dropped(
    base: BaseLayer, output: Tensor, x: Tensor, dropout: nn.Module, part: Callable[[], Tensor]
) -> Tensor:
    """Return a Δ's output where only a part of Δ sees what dropout leaves of the input.

    Args:
        base: The layer.
        output: What all of Δ makes of the whole input.
        x: The input.
        dropout: What :func:`input_dropout` returned.
        part: Returns the part, shaped as Δ is; asked only if something is dropped.
    """
    if not drops(dropout):
        return output
    return output + base.apply(part().reshape(base.weight_shape), dropout(x) - x)
