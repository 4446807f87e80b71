"""The inverse wavelet transform in two dimensions, of one level, differentiable; filters are PyWavelets'."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from peftcore.adapters.recomputing import recomputed
from peftcore.adapters.sparse import scattered

#: The taps of a low and of a high filter, equally many.
Filters = tuple[tuple[float, ...], tuple[float, ...]]


@functools.cache
def wavelet_names() -> frozenset[str]:
    """Return the names of the wavelets that there are."""
    import pywt

    return frozenset(pywt.wavelist(kind="discrete"))


@functools.cache
def reconstruction_filters(name: str) -> Filters:
    """Return a wavelet's filters for the inverse transform."""
    import pywt

    wavelet = pywt.Wavelet(name)
    return tuple(wavelet.rec_lo), tuple(wavelet.rec_hi)


def inverse_transform(
    entries: Tensor, places: Tensor, shape: tuple[int, int], filters: Filters, *, periodic: bool = False
) -> Tensor:
    """Return what a sparse spectrum is that of, in the cheaper way: as a sum of waves, or from the whole spectrum.

    The spectrum's quarters are the bands: the low one in both dimensions at the upper left; at the upper right what is
    high along a column, at the lower left what is high along a row; and at the lower right what is high in both.
    With zeros beyond its ends, it stands in the middle of a larger spectrum, so large that the whole matrix comes from
    it (Mallat's algorithm, as in PyWavelets' modes other than "periodization"); what sticks out of the matrix is lost.

    Args:
        entries: The entries that are not zero, ``[…, n]``.
        places: Their positions in the flattened spectrum, ``[n]``.
        shape: Rows and columns of the matrix, and of the spectrum.
        filters: The wavelet's.
        periodic: Whether waves go on at the opposite edge, in a matrix whose sizes are even.

    Returns:
        The matrix, ``[…, rows, columns]``.
    """
    taps = len(filters[0])
    # Measured: an entry of a wave takes forty times as long as one of the whole does for each tap; beside that, a wave
    # takes as long as twelve of its entries do, and one of the whole as fifteen taps.
    if 40 * len(places) * (taps**2 + 12) > (taps + 15) * shape[0] * shape[1]:
        return filtered(scattered(entries, places, shape), filters, periodic)
    # Waves take much more room than entries, so they are not kept for the gradient.
    return recomputed(functools.partial(sum_of_waves, shape=shape, filters=filters, periodic=periodic), entries, places)


def filtered(spectrum: Tensor, filters: Filters, periodic: bool) -> Tensor:
    """Return what :func:`inverse_transform` does, from a whole spectrum: both are ``[…, rows, columns]``."""
    rows, columns = spectrum.shape[-2:]
    (height, top, _), (width, left, _) = (_frame(size, len(filters[0]), periodic) for size in (rows, columns))
    whole = pad(spectrum, (left, 2 * width - columns - left, top, 2 * height - rows - top))
    # What is on the right is high along the columns, so it goes below; and what is below, to the right.
    bands = whole.reshape(-1, 2, height, 2, width).permute(3, 2, 0, 1, 4).reshape(2 * height, -1)
    down = _filtered_down(bands, rows, filters, periodic)
    # Transposed as matrices, since torch turns these several times as fast as anything of more dimensions.
    turned = down.mT.contiguous().reshape(-1, 2 * width, rows).transpose(0, 1).reshape(2 * width, -1)
    return _filtered_down(turned, columns, filters, periodic).mT.contiguous().reshape(spectrum.shape)


def _filtered_down(bands: Tensor, size: int, filters: Filters, periodic: bool) -> Tensor:
    """Return the inverse transform along the columns, ``[size, any]``, of two bands, ``[2 · frame.half, any]``."""
    taps, device = bands.new_tensor(filters), bands.device
    half, _, ahead = _frame(size, taps.shape[1], periodic)
    ends = torch.arange(size, device=device).unsqueeze(1) + ahead
    # Every other tap of each band's waves reaches a place.
    tap = ends % 2 + torch.arange(0, taps.shape[1], 2, device=device)
    starts = (ends - tap) // 2
    inside = (starts >= 0) & (starts < half) | periodic
    rows = torch.cat([starts % half, starts % half + half], 1)
    return embedding_bag(rows, bands, mode="sum", per_sample_weights=torch.cat([*(taps[:, tap] * inside)], 1))


def sum_of_waves(entries: Tensor, places: Tensor, shape: tuple[int, int], filters: Filters, periodic: bool) -> Tensor:
    """Return what :func:`inverse_transform` does, as the sum of a wave for each entry, a patch of taps × taps."""
    (high_along_row, start), (high_along_column, top) = (
        _located(place, size, len(filters[0]), periodic)
        for place, size in ((places % shape[1], shape[1]), (places // shape[1], shape[0]))
    )
    taps = torch.tensor(filters, device=entries.device, dtype=entries.dtype)
    rows, down = _wave(taps[high_along_row], top, shape[0], periodic)
    columns, across = _wave(taps[high_along_column], start, shape[1], periodic)
    targets = rows.unsqueeze(2) * shape[1] + columns.unsqueeze(1)
    waves = entries[..., None, None] * (down.unsqueeze(2) * across.unsqueeze(1))
    return scattered(waves.flatten(-3), targets.flatten(), shape)


class Frame(NamedTuple):
    """How a spectrum of some size stands, along one dimension, in a larger one of two bands.

    Attributes:
        half: A band's size.
        shift: How far in the spectrum begins.
        ahead: How far before the matrix the first wave of a band begins.
    """

    half: int
    shift: int
    ahead: int


def _frame(size: int, taps: int, periodic: bool) -> Frame:
    half = (size + (0 if periodic else taps - 2) + 1) // 2
    return Frame(half, (2 * half - size) // 2, taps // 2 - 1 if periodic else taps - 2)


def _located(places: Tensor, size: int, taps: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Return which band (0 low, 1 high) places along a dimension belong to, and where their waves begin."""
    frame = _frame(size, taps, periodic)
    places = places + frame.shift
    return places // frame.half, places % frame.half * 2 - frame.ahead


def _wave(filters: Tensor, starts: Tensor, size: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of waves along a dimension and their heights there, ``[n, taps]`` both; 0 if outside."""
    positions = starts.unsqueeze(1) + torch.arange(filters.shape[1], device=starts.device)
    if periodic:
        positions = positions % (size + size % 2)
    inside = (positions >= 0) & (positions < size)
    return positions.clamp(0, size - 1), filters * inside
