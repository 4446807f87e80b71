"""PeanutConfig: what PEANuT can be asked."""

from __future__ import annotations

from peftcore.config import LayerConfig, option
from peftcore_peanut.activations import ACTIVATIONS


class PeanutConfig(LayerConfig, method="peanut"):
    """Weight-aware neural tweakers, W' = W + s · B · net(A · W), where net is not linear (PEANuT, arXiv 2410.01870).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    r: int = option(32, "Rank: the network's width.", at_least=1)
    depth: int = option(0, "Layers of the network's encoder, and of its decoder.", at_least=0)
    act_fn: str = option("relu", "Name of the activation, as transformers has it: 'relu', 'silu', 'tanh' …")
    scaling: float = option(1.0, "What the network's result is multiplied by.")
    init_weights: bool = option(True, "Start with B = 0, so that the model is as it was; False is for tests.")

    def validate(self) -> None:
        """Check the fields, and that there is such an activation."""
        super().validate()
        if self.act_fn not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            self.refuse("act_fn", f"there is no activation {self.act_fn!r} without parameters; known: {known}")
