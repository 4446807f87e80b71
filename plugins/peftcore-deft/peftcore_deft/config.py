"""DeftConfig: what DEFT can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import LayerConfig, dropout_option, layout_option, option


class DeftConfig(LayerConfig, method="deft"):
    """Decompositional efficient finetuning, W' = W − Q · Fᵀ · W + s · Q · R (DEFT, arXiv 2509.22793).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(8, "Rank: dimensions of the subspace; at most the outputs of a layer are used.", at_least=1)
    decomposition_method: Literal["relu", "qr"] = option(
        "relu",
        "How the subspace follows from P: Q = P and F = relu(P), or both are an orthonormal basis of P's columns.",
    )
    init_scale: float = option(1.0, "What R is multiplied by where it starts at random.", at_least=0)
    alpha: int | None = option(None, "s is alpha / r, or 1 if None.", above=0)
    para: bool = option(False, "Leave out R (PaRa, arXiv 2406.05641); a new adapter then changes the model.")
    fan_in_fan_out: bool = layout_option()
    deft_dropout: float = dropout_option("an entry of R's input is dropped")
    init_weights: bool = option(
        True, "Start with the R that puts back what is taken out, so that the model is as it was; False is for tests."
    )
