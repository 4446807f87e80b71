"""AdaLoraConfig: what AdaLoRA can be asked."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

from typing_extensions import Self

from peftcore.allocation import falling
from peftcore.config import LayerConfig, input_dropout_option, layout_option, option

#: What a name in ``rank_pattern`` ends in, behind the layer's path.
OF_LAYER = ".lora_E"


class AdaLoraConfig(LayerConfig, method="adalora"):
    """Adaptive low-rank adaptation, W' = W + s · B · diag(E) · A with s = lora_alpha / init_r (arXiv 2303.10512).

    Training has three phases: all ranks stay ``init_r`` for ``tinit`` steps; then the budget, the number of ranks of
    all layers together, falls to ``target_r`` per layer; and for the last ``tfinal`` of the ``total_step`` steps the
    ranks stay what they are. Names and defaults are those of HF PEFT.

    Attributes:
        kept_rank: Of a config for one layer (:meth:`for_layer`): the rank that training has left to it; None for all.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    # Fields of LoRA's variants, which AdaLoRA does not have.
    foreign_defaults: ClassVar[dict[str, Any]] = {"megatron_core": "megatron.core", "qalora_group_size": 16}
    kept_rank: ClassVar[int | None] = None

    init_r: int = option(12, "Rank of every layer at first.", at_least=1)
    target_r: int = option(8, "Mean rank of the layers at last.", at_least=1)
    total_step: int | None = option(None, "Steps of the whole training; has to be given.", at_least=1)
    tinit: int = option(0, "Steps before the first rank is taken.", at_least=0)
    tfinal: int = option(0, "Steps at the end with the ranks that are left.", at_least=0)
    deltaT: int = option(1, "Steps from one allocation of ranks to the next.", at_least=1)
    beta1: float = option(0.85, "How much of a parameter's mean sensitivity a step keeps.", above=0, below=1)
    beta2: float = option(0.85, "How much of its mean uncertainty a step keeps.", above=0, below=1)
    orth_reg_weight: float = option(0.5, "Weight of the orthogonality loss.", at_least=0)
    lora_alpha: float = option(8, "Numerator of the scaling.", pattern="alpha_pattern")
    lora_dropout: float = input_dropout_option()
    use_rslora: bool = option(False, "Divide lora_alpha by the square root of init_r instead of init_r.")
    init_lora_weights: bool | Literal["gaussian"] = option(
        True, "Start with E zero, so that the model is as it was, and A and B normal; False is for tests."
    )
    rank_pattern: dict[str, list[bool]] | None = option(
        None, "Which ranks training has left to which layer; written at the end, and holds from then on."
    )
    alpha_pattern: dict[str, float] = option({}, "Values of lora_alpha for single layers, by regular expressions.")
    fan_in_fan_out: bool = layout_option()
    lora_bias: bool = option(False, "Has to be False: the factors have no bias.")
    r: int = option(8, "Ignored; the ranks are init_r and target_r.", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r != 8:
            warnings.warn("AdaLoraConfig.r is ignored; the ranks are init_r and target_r.", stacklevel=3)

    def _settle_types(self) -> None:
        super()._settle_types()
        if self.bias == "lora_only":  # HF PEFT's other word for it
            self.bias = "adalora_only"

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        if self.total_step is None:
            self.refuse("total_step", "has to be given, since the schedule of the ranks follows from it")
        if self.tinit >= self.total_step - self.tfinal:
            self.refuse(
                "total_step",
                f"{self.total_step} leaves no step for taking ranks, between tinit={self.tinit} steps at the start and "
                f"tfinal={self.tfinal} at the end",
            )
        if self.target_r > self.init_r:
            self.refuse("target_r", f"can't be above init_r, got {self.target_r} and {self.init_r}")
        if self.lora_bias:
            self.refuse("lora_bias", "has to be False, since AdaLoRA's factors have no bias")

    def for_layer(self, path: str) -> Self:
        """Return the config as it holds for one layer, which knows the rank that training has left to it.

        Args:
            path: The layer's dotted path in the model.
        """
        special = super().for_layer(path)
        kept = (self.rank_pattern or {}).get(path + OF_LAYER)
        return special if kept is None else special.unchecked_copy(kept_rank=sum(kept))

    @property
    def last_allocation(self) -> int:
        """The step from which on ranks stay what they are."""
        assert self.total_step is not None
        return self.total_step - self.tfinal

    def budget(self, step: int) -> float:
        """Return the mean rank that layers may have after a step: init_r, then falling as a cube to target_r."""
        return falling(step, self.tinit, self.last_allocation, self.init_r, self.target_r)
