"""C3AConfig: what C3A can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, option


class C3AConfig(LayerConfig, method="c3a"):
    """Circular convolution adaptation, W' = W + Δ / in with circulant blocks in Δ (C³A, arXiv 2407.19342).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    block_size: int = option(
        256,
        "Side of the circulant blocks, a divisor of both sizes of the layer.",
        at_least=1,
        pattern="block_size_pattern",
    )
    block_size_pattern: dict[str, int] = option(
        {}, "Block sizes of single layers, by regular expressions on their paths' ends."
    )
    init_weights: bool | Literal["gaussian", "kaiming_uniform", "xavier_uniform"] = option(
        "xavier_uniform",
        "How the kernels start: True, at zero, so that the model is as it was; by a random distribution; False means "
        "'xavier_uniform'.",
    )
