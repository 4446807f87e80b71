"""ShiraConfig: what SHiRA can be asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from peftcore.config import LayerConfig, layout_option, option

#: Chooses the entries of a layer that train: called with the frozen layer, ``r`` and the keyword ``random_seed``, it
#: returns zeros and ``r · (out + in)`` ones in the shape of the canonical weight, that of a linear layer's ``weight``.
MaskFunction = Callable[..., Tensor]


class ShiraConfig(LayerConfig, method="shira"):
    """Sparse high-rank adaptation, W' = W + S with r · (out + in) entries in S (arXiv 2406.13175).

    Names and defaults are those of HF PEFT.
    A function set as :attr:`mask_fn` chooses the entries instead of chance; it is no field, so files do not hold it.
    They hold the entries themselves.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds.
    """

    r: int = option(32, "Train r · (out + in) entries of a weight, as many as LoRA of this rank.", at_least=1)
    mask_type: Literal["random"] = option("random", "How entries are chosen where there is no mask_fn.")
    random_seed: int | None = option(None, "Seed of the random choice; layers of one shape get the same entries.")
    fan_in_fan_out: bool = layout_option()
    init_weights: bool = option(
        True, "Start with zeros, which leave the model as it was; else with random numbers, for tests."
    )

    @property
    def mask_fn(self) -> MaskFunction | None:
        """The function that chooses the entries; None for :attr:`mask_type`."""
        return self.__dict__.get("_mask_fn")

    @mask_fn.setter
    def mask_fn(self, function: MaskFunction | None) -> None:
        if function is not None and not callable(function):
            self.refuse("mask_fn", f"must be a function, got {function!r} ({type(function).__name__})")
        self.__dict__["_mask_fn"] = function
