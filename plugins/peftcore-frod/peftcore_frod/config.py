"""FrodConfig: what FRoD can be asked."""

from __future__ import annotations

from peftcore.adapters.projections import ProjectionConfig
from peftcore.config import input_dropout_option, layout_option, option


class FrodConfig(ProjectionConfig, method="frod"):
    """Full-rank fine-tuning with rotational degrees, W' = U · (Λ + S) · Vᵀ (arXiv 2512.23485).

    V is a basis that layers of one name share, Λ a diagonal and S a sparse matrix; Λ and S train.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    projection_prng_key: int = option(
        0, "Seed from which the places of S's entries are drawn.", at_least=-(2**63), at_most=2**63 - 1
    )
    save_projection: bool = option(
        True, "Whether files hold V and the places; if not, they are found again when a file is loaded."
    )
    frod_dropout: float = input_dropout_option()
    fan_in_fan_out: bool = layout_option()
    init_weights: bool = option(
        True, "Start with W' = W, so that the model is as it was; False adds normal noise to Λ and S."
    )
    sparse_rate: float = option(
        0.01, "Number of S's entries, as a share of all; at least one, and none on the diagonal.", at_least=0, at_most=1
    )
    regularization_alpha: float = option(
        0.001, "What holds inverses back where layers agree, while V is found.", above=0
    )
    progressbar: bool = option(True, "Show how far that has come, if it takes long.")
    runtime_offload_base_weight: bool = option(False, "Ignored: the frozen weight stays where it is.")
