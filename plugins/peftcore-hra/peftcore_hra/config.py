"""HRAConfig: what Householder reflection adaptation can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, option


class HRAConfig(LayerConfig, method="hra"):
    """Householder reflection adaptation, W' = W · H₁ · … · H_r with Hᵢ = I − 2uᵢuᵢᵀ/‖uᵢ‖² (arXiv 2405.17484).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(8, "Number of reflections; even, if the start is to leave the model as it was.", at_least=1)
    apply_GS: bool = option(
        False,
        "Make the vectors orthogonal to each other (Gram-Schmidt); the start then does not leave the model as it was.",
    )
    init_weights: bool = option(
        True, "Start with pairs of equal vectors, whose reflections undo each other; False, for tests, does not."
    )
