"""RandLoraConfig: what RandLoRA can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, option


class RandLoraConfig(LayerConfig, method="randlora"):
    """Full-rank adaptation by random bases, W' = W + s · Σᵢ Bᵢ · diag(λᵢ) · A · diag(γᵢ) (arXiv 2502.00987).

    A and the Bᵢ are random, frozen, and the same for all layers; the scaling is ``s = randlora_alpha / r``.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(32, "Rank of each basis: the smaller it is, the more bases and parameters.", at_least=1)
    projection_prng_key: int = option(0, "Seed from which the bases are drawn.", at_least=-(2**63), at_most=2**63 - 1)
    save_projection: bool = option(
        True, "Whether files hold the bases; if not, they are drawn again from the seed when a file is loaded."
    )
    sparse: bool = option(False, "Draw bases of -1, 0 and 1, two thirds of them zeros.")
    very_sparse: bool = option(False, "As sparse, but with all entries zero except one of √(smaller size).")
    randlora_dropout: float = option(
        0.0, "Probability with which an entry of the input is dropped.", at_least=0, below=1
    )
    fan_in_fan_out: bool = option(False, "Ignored, since a layer's own class says how it stores its weight.")
    randlora_alpha: float = option(640, "Numerator of the scaling; about 20 times the rank.")
    init_weights: bool = option(True, "Start with λ = 0, so that the model is as it was; False is for tests.")
    # HF PEFT's config has no such field.
    exclude_modules: str | set[str] | None = option(
        None, "Modules to leave out, written as target_modules.", extension=True
    )
