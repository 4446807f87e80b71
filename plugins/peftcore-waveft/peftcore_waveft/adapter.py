"""WaveFTAdapter: a sparse spectrum of wavelets, transformed and added to a frozen weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from peftcore.adapters.spectral import SpectralDelta
from peftcore.base_layers import BaseLayer
from peftcore_waveft.config import WaveFTConfig
from peftcore_waveft.wavelets import inverse_transform, reconstruction_filters


class WaveFTAdapter(SpectralDelta):
    """A trained spectrum on one layer, Δ = scaling · D⁻¹(S) (arXiv 2505.12532).

    D⁻¹ is the inverse wavelet transform in two dimensions, of a matrix ``[out, in · kernel]``.
    ``waveft_spectrum`` ``[n]`` are the entries of S that are not zero; stacked experts have one each,
    ``[experts, n]``. Their places are drawn from the config's seed, the same ones on all layers of one size, and are
    not saved.

    Attributes:
        filters: The wavelet's; None if S itself is added.

    Raises:
        ConfigError: The weight has fewer entries than the spectrum.
    """

    spread: ClassVar[float] = 0.01

    def __init__(self, base: BaseLayer, config: WaveFTConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.is_periodic = config.boundary == "periodization"
        self.filters = reconstruction_filters(config.wavelet_family) if config.use_idwt else None

    def transform(self, entries: Tensor) -> Tensor:
        """Return D⁻¹(S), or S itself."""
        if self.filters is None:
            return self.spectrum(entries)
        shape = self.base.matrix_shape
        return inverse_transform(entries, self.places, shape, self.filters, periodic=self.is_periodic)
