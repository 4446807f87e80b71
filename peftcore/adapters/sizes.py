"""Checks that the sizes a config asks for fit a layer; the errors name the field, the layer and what to do."""

from __future__ import annotations

import math

from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig


def check_rank(base: BaseLayer, config: LayerConfig, field: str) -> None:
    """Check that a rank is not above both sizes of a layer's weight, since no matrix of that shape has it.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the rank.

    Raises:
        ConfigError: It is.
    """
    rank, sizes = getattr(config, field), base.matrix_shape
    if rank > max(sizes):
        problem = f"{rank} is above both sizes of the weight of a {base}, {sizes[0]} × {sizes[1]}"
        config.refuse(field, f"{problem}: choose a smaller one{_for_this_layer(config, field)}")


def check_subspace(base: BaseLayer, config: LayerConfig, field: str) -> None:
    """Check that a weight has as many singular values as a rank asks for.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the rank.

    Raises:
        ConfigError: It has fewer.
    """
    most = min(base.matrix_shape)
    if getattr(config, field) > most:
        problem = f"{getattr(config, field)} is above the {most} singular values of a {base}"
        config.refuse(field, f"{problem}: choose at most {most}{_for_this_layer(config, field)}")


def check_entries(base: BaseLayer, config: LayerConfig, field: str) -> None:
    """Check that a weight, or each one of a stack, has as many entries as a number asks for.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the number.

    Raises:
        ConfigError: It has fewer.
    """
    out, into = base.matrix_shape
    if getattr(config, field) > out * into:
        entries = f"{out * into} entries of the weight of a {base}, {out} × {into}"
        problem = f"{getattr(config, field)} is above the {entries}"
        config.refuse(field, f"{problem}: choose a smaller one{_for_this_layer(config, field)}")


def check_divisor(base: BaseLayer, config: LayerConfig, field: str) -> None:
    """Check that a length cuts both sizes of a layer's weight into whole pieces.

    Args:
        base: The layer.
        config: The method's config as it holds for the layer.
        field: The config's field that has the length.

    Raises:
        ConfigError: It doesn't.
    """
    length, (out, into) = getattr(config, field), base.matrix_shape
    sizes = [f"{size} {what}" for size, what in ((into, "inputs"), (out, "outputs")) if size % length]
    if sizes:
        problem = f"{length} does not divide the {' and the '.join(sizes)} of a {base} (weight {out} × {into})"
        config.refuse(field, f"{problem}: choose a divisor of {math.gcd(out, into)}{_for_this_layer(config, field)}")


def _for_this_layer(config: LayerConfig, field: str) -> str:
    pattern = config.pattern_of(field)
    return f" for that layer alone in {pattern}, or exclude it" if pattern else ", or exclude the layer"
