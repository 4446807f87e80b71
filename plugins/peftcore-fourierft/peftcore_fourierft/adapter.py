"""FourierFTAdapter: a sparse spectrum, transformed and added to a frozen weight."""

from __future__ import annotations

import torch
from torch import Tensor

from peftcore.adapters.spectral import SpectralDelta


class FourierFTAdapter(SpectralDelta):
    """A trained spectrum on one layer, Δ = scaling · Re F⁻¹(S) (arXiv 2405.03003).

    F⁻¹ is the inverse Fourier transform in two dimensions, of a matrix ``[out, in · kernel]``.
    ``fourierft_spectrum`` ``[n]`` are the entries of S that are not zero; stacked experts have one each,
    ``[experts, n]``. Their places are drawn from the config's seed, the same ones on all layers of one size, and are
    not saved.

    Raises:
        ConfigError: The weight has fewer entries than the spectrum.
    """

    def transform(self, entries: Tensor) -> Tensor:
        """Return Re F⁻¹(S)."""
        return torch.fft.ifft2(self.spectrum(entries)).real
