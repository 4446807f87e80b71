"""VeraConfig: what VeRA can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, option


class VeraConfig(LayerConfig, method="vera"):
    """Vector-based random matrix adaptation, W' = W + diag(λ_b) · B · diag(λ_d) · A (arXiv 2310.11454).

    A and B are random, frozen, and the same for all layers.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(256, "Rank: rows of A and columns of B; may be above the layers' sizes.", at_least=1)
    projection_prng_key: int = option(0, "Seed from which A and B are drawn.", at_least=-(2**63), at_most=2**63 - 1)
    save_projection: bool = option(
        True, "Whether files hold A and B; if not, they are drawn again from the seed when a file is loaded."
    )
    vera_dropout: float = option(0.0, "Probability with which an entry of the input is dropped.", at_least=0, below=1)
    d_initial: float = option(0.1, "What λ_d starts with.")
    fan_in_fan_out: bool = option(False, "Ignored, since a layer's own class says how it stores its weight.")
    init_weights: bool = option(True, "Start with λ_b = 0, so that the model is as it was; False is for tests.")
    # HF PEFT's config has no such field.
    exclude_modules: str | set[str] | None = option(
        None, "Modules to leave out, written as target_modules.", extension=True
    )
