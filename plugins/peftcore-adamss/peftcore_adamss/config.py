"""AdamssConfig: what AdaMSS can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.allocation import falling
from peftcore.config import LayerConfig, option


class AdamssConfig(LayerConfig, method="adamss"):
    """Adaptive multi-subspace adaptation, W'ₖ = Wₖ + Bₖ · Aₖ · V (https://openreview.net/forum?id=8ZdWmpYxT0).

    V are a frozen weight's strongest right singular vectors, and k counts clusters of its outputs.
    With ``use_asa`` training goes on for fewer and fewer clusters: all of them until ``init_warmup``, then as many as
    :meth:`budget` says, and ``asa_target_subspaces`` from ``final_warmup`` on.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(100, "Number of V's vectors; all there are, where a weight has no more.", at_least=1)
    num_subspaces: int = option(5, "Number of clusters of a layer's outputs.", at_least=1)
    subspace_rank: int = option(1, "Rank of a cluster's Bₖ · Aₖ; its number of outputs, if that is less.", at_least=1)
    init_weights: Literal["orthogonal"] | None = option(
        "orthogonal", "Start with B zero, so that the model is as it was; None starts with small random numbers."
    )
    use_asa: bool = option(False, "Train fewer and fewer clusters; needs update_and_allocate(step) in each step.")
    asa_target_subspaces: int = option(50, "Clusters of all layers together that train at last.", at_least=1)
    init_warmup: int = option(50, "Step until which all clusters train.", at_least=0)
    final_warmup: int = option(1000, "Step from which asa_target_subspaces clusters train.", at_least=1)
    mask_interval: int = option(100, "Steps from one choice of clusters to the next.", at_least=1)
    asa_importance_beta: float = option(
        0.85, "How much of a parameter's mean sensitivity a step keeps.", at_least=0, below=1
    )
    asa_uncertainty_beta: float = option(0.85, "How much of its mean uncertainty a step keeps.", at_least=0, below=1)
    asa_schedule_exponent: float = option(
        3.0, "How fast the number of clusters falls at first; 1 is a straight line.", above=0
    )
    use_dynamic_rank: bool = option(False, "Give a cluster a smaller rank where its outputs have few directions.")
    svd_threshold: float = option(
        0.1, "A direction counts then if its squared singular value is above this share of the largest.", at_least=0
    )
    random_seed: int = option(
        0, "Seed of the decomposition, on which the clusters depend.", at_least=-(2**63), at_most=2**63 - 1
    )

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        if self.subspace_rank > self.r:
            self.refuse("subspace_rank", f"can't be above r, got {self.subspace_rank} and {self.r}")
        if self.use_asa and self.init_warmup >= self.final_warmup:
            self.refuse(
                "final_warmup",
                f"has to be above init_warmup, so that there are steps between them, got {self.final_warmup} and "
                f"{self.init_warmup}",
            )

    def budget(self, step: int, total: int) -> int:
        """Return how many clusters may train after a step.

        Args:
            step: Not before ``init_warmup``.
            total: How many clusters all layers have together.
        """
        end, exponent = self.asa_target_subspaces, self.asa_schedule_exponent
        return int(falling(step, self.init_warmup, self.final_warmup, total, end, exponent))
