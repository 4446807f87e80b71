"""PsoftConfig: what PSOFT can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, input_dropout_option, layout_option, option


class PsoftConfig(LayerConfig, method="psoft"):
    """Orthogonal finetuning in the principal subspace, W' = W + B · (diag(b) · R · diag(a) − I) · A (arXiv 2505.11235).

    B · A is the best approximation of W with rank r; R is orthogonal, and small.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(32, "Size of R: dimensions of the subspace.", at_least=1)
    psoft_alpha: int = option(32, "No effect: HF PEFT scales by alpha / r, and B · A by the inverse of that.", above=0)
    psoft_dropout: float = input_dropout_option()
    fan_in_fan_out: bool = layout_option()
    ab_svd_init: Literal["psoft_init", "pissa_init"] = option(
        "psoft_init",
        "Where W's singular values go: all into B, so that A's rows are orthonormal, or their square roots into each.",
    )
    psoft_svd: Literal["full", "lowrank"] = option(
        "full", "How W is decomposed: exactly, or fast, by random projections."
    )
    psoft_svd_lowrank_niter: int = option(10, "Power iterations of the latter.", at_least=0)
    random_seed: int = option(
        0, "Seed of the latter, so that a loaded adapter finds the same subspace.", at_least=-(2**63), at_most=2**63 - 1
    )
    psoft_orth: bool = option(True, "Keep R orthogonal; otherwise it is any matrix.")
    psoft_mag_b: bool = option(True, "Train the scaling b on R's outputs.")
    psoft_mag_a: bool = option(True, "Train the scaling a on R's inputs.")
    use_cayley_neumann: bool = option(False, "Compute R by a series, orthogonal up to the terms that it leaves out.")
    num_cayley_neumann_terms: int = option(5, "Terms of the series.", at_least=1)
    cayley_neumann_eps: float | None = option(None, "In the series, bound of Q's norm; none if None.", above=0, below=1)
    init_weights: bool = option(True, "Start with R = I, so that the model is as it was; False is for tests.")
