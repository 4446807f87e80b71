"""SpectralDelta: Δ = scaling · T(S) with a sparse spectrum S, the family of methods that train a few frequencies."""

from __future__ import annotations

import functools
from abc import abstractmethod
from array import array
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.adapters.sizes import check_entries
from peftcore.adapters.sparse import scattered
from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig, layout_option, option


class SpectralConfig(LayerConfig):
    """What every method with a sparse spectrum can be asked."""

    n_frequency: int = option(
        1000, "Number of entries of the spectrum that train.", at_least=1, pattern="n_frequency_pattern"
    )
    scaling: float = option(1.0, "What the transformed spectrum is multiplied by.")
    random_loc_seed: int = option(
        777, "Seed from which the places of the entries are drawn.", at_least=-(2**63), at_most=2**63 - 1
    )
    fan_in_fan_out: bool = layout_option()
    n_frequency_pattern: dict[str, int] = option(
        {}, "Numbers of entries for single layers, by regular expressions on their paths' ends."
    )
    init_weights: bool = option(
        True, "Start at zero, so that the model is as it was; False starts with a normal distribution."
    )


class SpectralDelta(WeightDelta):
    """An additive change of the weight that is a linear transform of a matrix with few entries that are not zero.

    The author writes :meth:`transform`.
    The parameter, ``<method>_spectrum`` ``[n]``, has these entries; stacked experts have their own, ``[experts, n]``.
    Their places are drawn from the config's seed, the same ones on all layers of one size, and files do not hold them.

    Attributes:
        places: Positions of the entries in the flattened spectrum, ``[n]``.
        scaling: What the transformed spectrum is multiplied by.

    Raises:
        ConfigError: The weight has fewer entries than the spectrum.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS
    #: Standard deviation of entries that start at random.
    spread: ClassVar[float] = 1.0

    places: Tensor

    def __init__(self, base: BaseLayer, config: SpectralConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_entries(base, config, "n_frequency")
        self.scaling = config.scaling
        out, into = base.matrix_shape
        places = torch.frombuffer(_places(out * into, config.n_frequency, config.random_loc_seed), dtype=torch.int64)
        self.register_buffer("places", places.to(base.device, copy=True), persistent=False)
        shape = *base.stack_shape, config.n_frequency
        start = torch.zeros(shape) if config.init_weights else self.spread * torch.randn(shape)
        self.register_parameter(f"{config.method}_spectrum", nn.Parameter(start))

    @abstractmethod
    def transform(self, entries: Tensor) -> Tensor:
        """Return the transform of the spectrum, ``[out, in · kernel]``.

        Args:
            entries: The spectrum's entries at :attr:`places`, in float32 or finer, ``[n]``; they and the result have
                ``[experts]`` in front where weights are stacked.
        """

    def spectrum(self, entries: Tensor) -> Tensor:
        """Return the spectrum as a whole, shaped as its transform is.

        Args:
            entries: As :meth:`transform` takes them.
        """
        return scattered(entries, self.places, self.base.matrix_shape)

    def delta_weight(self) -> Tensor:
        """Return the transform of the scaled spectrum."""
        (entries,) = self.parameters()
        wide = entries.to(torch.promote_types(entries.dtype, torch.float32))
        return self.transform(wide * self.scaling).to(entries.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frequencies={len(self.places)}, scaling={self.scaling:g}"


@functools.lru_cache(maxsize=64)
def _places(entries: int, count: int, seed: int) -> array[int]:
    """Return so many of the places in a spectrum, kept for the next layer: drawing them takes longer than all else.

    No tensor is kept, since one may be of a sort (made in inference mode, say) that other adapters can't use.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return array("q", torch.randperm(entries, generator=generator, device="cpu")[:count].tolist())
