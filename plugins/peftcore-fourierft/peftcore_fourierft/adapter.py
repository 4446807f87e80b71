"""FourierFTAdapter: a sparse spectrum, transformed and added to a frozen weight."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import MATRIX_KINDS, WeightDelta
from peftcore.base_layers import BaseLayer
from peftcore_fourierft.config import FourierFTConfig


class FourierFTAdapter(WeightDelta):
    """A trained spectrum on one layer, Δ = scaling · Re F⁻¹(S) (arXiv 2405.03003).

    F⁻¹ is the inverse Fourier transform in two dimensions, of a matrix ``[out, in · kernel]``.
    ``fourierft_spectrum`` ``[n]`` are the entries of S that are not zero; stacked experts have one each,
    ``[experts, n]``. Their places are drawn from the config's seed, the same ones on all layers of one size, and are
    not saved.

    Attributes:
        places: Positions of the entries in the flattened S, ``[n]``.

    Raises:
        ConfigError: The weight has fewer entries than the spectrum.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS
    places: Tensor

    def __init__(self, base: BaseLayer, config: FourierFTConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        out, into = base.matrix_shape
        if config.n_frequency > out * into:
            config.refuse(
                "n_frequency",
                f"{config.n_frequency} is above the {out * into} entries of the weight of a {base}, {out} × {into}: "
                "choose a smaller one for that layer alone in n_frequency_pattern, or exclude it",
            )
        self.scaling = config.scaling
        places = _places(out * into, config.n_frequency, config.random_loc_seed)
        self.register_buffer("places", torch.tensor(places, device=base.device), persistent=False)
        shape = *base.stack_shape, config.n_frequency
        self.fourierft_spectrum = nn.Parameter(torch.zeros(shape) if config.init_weights else torch.randn(shape))

    def delta_weight(self) -> Tensor:
        """Return scaling · Re F⁻¹(S)."""
        entries = self.fourierft_spectrum
        wide = entries.to(torch.promote_types(entries.dtype, torch.float32))  # there are no transforms in less
        out, into = self.base.matrix_shape
        nothing = wide.new_zeros(*self.base.stack_shape, out * into)
        spectrum = nothing.index_copy(-1, self.places, wide).reshape(*self.base.stack_shape, out, into)
        return (torch.fft.ifft2(spectrum).real * self.scaling).to(entries.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frequencies={len(self.places)}, scaling={self.scaling:g}"


@functools.lru_cache(maxsize=64)
def _places(entries: int, count: int, seed: int) -> tuple[int, ...]:
    """Return so many of the places in a spectrum, kept for the next layer: drawing them takes longer than all else.

    No tensor is kept, since one may be of a sort (made in inference mode, say) that other adapters can't use.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return tuple(torch.randperm(entries, generator=generator, device="cpu")[:count].tolist())
