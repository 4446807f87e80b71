"""WaveFTAdapter: a sparse spectrum of wavelets, transformed and added to a frozen weight."""

from __future__ import annotations

from typing import ClassVar

import torch
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
        filters: The wavelet's, ``[2, taps]``; None if S itself is added.

    Raises:
        ConfigError: The weight has fewer entries than the spectrum.
    """

    spread: ClassVar[float] = 0.01

    filters: Tensor | None

    def __init__(self, base: BaseLayer, config: WaveFTConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.is_periodic = config.boundary == "periodization"
        self.register_buffer("filters", _filters(base, config) if config.use_idwt else None, persistent=False)

    def transform(self, entries: Tensor) -> Tensor:
        """Return D⁻¹(S), or S itself."""
        if self.filters is None:
            return self.spectrum(entries)
        filters = self.filters.to(entries.dtype)
        return inverse_transform(entries, self.places, self.base.matrix_shape, filters, periodic=self.is_periodic)


def _filters(base: BaseLayer, config: WaveFTConfig) -> Tensor:
    taps = reconstruction_filters(config.wavelet_family)
    return torch.tensor(taps, device=base.device, dtype=torch.promote_types(base.dtype, torch.float32))
