"""IA3Config: what IA3 can be asked."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import Self

from peftcore.config import LayerConfig, layout_option, option
from peftcore.targets.names import NamePatterns


class IA3Config(LayerConfig, method="ia3"):
    """Infused adapter by inhibiting and amplifying inner activations (arXiv 2205.05638).

    Names and defaults are those of HF PEFT.

    Attributes:
        is_feedforward: Of a config for one layer (:meth:`for_layer`): whether the layer's input is scaled.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    is_feedforward: ClassVar[bool] = False

    feedforward_modules: str | set[str] | None = option(
        None,
        "Target modules whose input is scaled instead of their output, written as target_modules; "
        "if None, the usual ones of the model's type, or none where it has none.",
    )
    fan_in_fan_out: bool = layout_option()
    init_ia3_weights: bool = option(True, "Start with ones, which change nothing; else with random numbers, for tests.")

    def validate(self) -> None:
        """Check the fields, and that an expression can be compiled."""
        super().validate()
        self.feedforward_names()

    def for_layer(self, path: str) -> Self:
        """Return the config as it holds for one layer, which knows whether it is a feedforward one.

        Args:
            path: The layer's dotted path in the model.
        """
        return super().for_layer(path).unchecked_copy(is_feedforward=bool(self.feedforward_names().fits(path)))

    def feedforward_names(self) -> NamePatterns:
        """Return what finds the feedforward modules by their paths."""
        return NamePatterns(self.feedforward_modules or ())
