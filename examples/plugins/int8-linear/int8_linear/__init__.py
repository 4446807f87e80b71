"""Linear layers in eight bits, for every method of peftcore: an extension, which has no method of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from int8_linear.layer import Int8BaseLayer, Int8Linear
from peftcore import hookimpl
from peftcore.base_layers import BaseLayer

__all__ = ["Int8BaseLayer", "Int8Linear"]

#: By type of model: what is adapted when a config names nothing.
TARGETS = {"int8_decoder": ["up", "down"]}


@hookimpl
def adapt_base_layer(layer: nn.Module) -> BaseLayer | None:
    """Let methods see an Int8Linear."""
    return Int8BaseLayer(layer) if isinstance(layer, Int8Linear) else None


@hookimpl
def default_target_modules(model_type: str) -> Sequence[str] | None:
    """Name the modules to adapt in models of these types, whatever the method."""
    return TARGETS.get(model_type)


@hookimpl
def register_commands(cli: Any) -> None:
    """Add ``peftcore int8-error``."""
    from int8_linear.command import int8_error

    cli.command("int8-error")(int8_error)
