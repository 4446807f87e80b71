"""OsfConfig: what OSF can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, option


class OsfConfig(LayerConfig, method="osf"):
    """Orthogonal subspace fine-tuning, W' = U_h · S_h · V_h + U_l · S_l · V_l (arXiv 2504.07097).

    The first product, W's strongest singular directions, is frozen; the second, the rest of W, is trained, with
    gradients that are orthogonal to the directions of the first.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    effective_rank: int | float | None = option(
        None,
        "How many singular directions are frozen: a number, or up to 1.0 a share of all; half of them if None.",
        above=0,
        pattern="rank_pattern",
    )
    rank_pattern: dict[str, int | float] | None = option(None, "Other values of effective_rank, by patterns of paths.")
    init_weights: bool | None = option(
        True, "Start with W's own directions, so that the model is as it was; False starts at random, for tests."
    )
    target_svd_config: dict[str, int] | None = option(None, "No effect, as in HF PEFT.")
    project_weights: bool = option(
        False,
        "Project U_l and V_l too where they act, so that no optimizer's steps leave the free directions.",
        extension=True,
    )

    def validate(self) -> None:
        """Check the fields, and that numbers of directions are whole."""
        super().validate()
        numbers = {"effective_rank": [self.effective_rank], "rank_pattern": (self.rank_pattern or {}).values()}
        for field, ranks in numbers.items():
            for rank in ranks:
                if rank is not None and rank > 1 and rank != int(rank):
                    self.refuse(field, f"above 1 it counts directions, so it must be whole, got {rank}")
