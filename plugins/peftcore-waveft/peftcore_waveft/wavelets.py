"""The inverse wavelet transform in two dimensions, of one level, differentiable; filters are PyWavelets'."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, pad

from peftcore.adapters.recomputing import recomputed
from peftcore.adapters.sparse import scattered


@functools.cache
def wavelet_names() -> frozenset[str]:
    """Return the names of the wavelets that there are."""
    import pywt

    return frozenset(pywt.wavelist(kind="discrete"))


@functools.cache
def reconstruction_filters(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the taps of a wavelet's low and of its high filter for the inverse transform, equally many."""
    import pywt

    wavelet = pywt.Wavelet(name)
    return tuple(wavelet.rec_lo), tuple(wavelet.rec_hi)


def inverse_transform(
    entries: Tensor, places: Tensor, shape: tuple[int, int], filters: Tensor, *, periodic: bool = False
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
        filters: ``[2, taps]``, low and high.
        periodic: Whether waves go on at the opposite edge, in a matrix whose sizes are even.

    Returns:
        The matrix, ``[…, rows, columns]``.
    """
    # An entry of the matrix costs two filterings of the whole about as much as two of a wave's cost to be added.
    if len(places) * filters.shape[1] ** 2 > 2 * shape[0] * shape[1]:
        return filtered(scattered(entries, places, shape), filters, periodic)
    # Waves take much more room than entries, so they are not kept for the gradient.
    return recomputed(functools.partial(sum_of_waves, shape=shape, periodic=periodic), entries, places, filters)


def filtered(spectrum: Tensor, filters: Tensor, periodic: bool) -> Tensor:
    """Return a whole spectrum's inverse transform, both ``[…, rows, columns]``."""
    return _filtered_down(_filtered_down(spectrum, filters, periodic).mT, filters, periodic).mT


def _filtered_down(spectrum: Tensor, filters: Tensor, periodic: bool) -> Tensor:
    """Return the inverse transform along the columns alone."""
    size, taps = spectrum.shape[-2], filters.shape[1]
    half, shift, ahead = _frame(size, taps, periodic)
    bands = pad(spectrum, (0, 0, shift, 2 * half - size - shift)).reshape(-1, 2, half, spectrum.shape[-1])
    if periodic:  # as many turns around as a wave may be long
        around = torch.arange(-taps // 2, half + taps // 2, device=spectrum.device) % half
        bands, ahead = bands.index_select(2, around), ahead + 2 * (taps // 2)
    waves = conv_transpose2d(bands, filters[:, None, :, None], stride=(2, 1))
    return waves.narrow(2, ahead, size).reshape(spectrum.shape)


def sum_of_waves(entries: Tensor, places: Tensor, filters: Tensor, shape: tuple[int, int], periodic: bool) -> Tensor:
    """Return what :func:`inverse_transform` does, as the sum of a wave for each entry, a patch of taps × taps."""
    (high_along_row, start), (high_along_column, top) = (
        _located(place, size, filters.shape[-1], periodic)
        for place, size in ((places % shape[1], shape[1]), (places // shape[1], shape[0]))
    )
    rows, down = _wave(filters[high_along_row], top, shape[0], periodic)
    columns, across = _wave(filters[high_along_column], start, shape[1], periodic)
    targets = rows.unsqueeze(2) * shape[1] + columns.unsqueeze(1)
    waves = entries[..., None, None] * (down.unsqueeze(2) * across.unsqueeze(1))
    return scattered(waves.flatten(-3), targets.flatten(), shape)


def _frame(size: int, taps: int, periodic: bool) -> tuple[int, int, int]:
    """Return a band's size along a dimension, how far in the spectrum stands, and how far ahead of it waves begin."""
    half = (size + (0 if periodic else taps - 2) + 1) // 2
    return half, (2 * half - size) // 2, taps // 2 - 1 if periodic else taps - 2


def _located(places: Tensor, size: int, taps: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Return which band (0 low, 1 high) places along a dimension belong to, and where their waves begin."""
    half, shift, ahead = _frame(size, taps, periodic)
    places = places + shift
    return places // half, places % half * 2 - ahead


def _wave(filters: Tensor, starts: Tensor, size: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of waves along a dimension and their heights there, ``[n, taps]`` both; 0 if outside."""
    positions = starts.unsqueeze(1) + torch.arange(filters.shape[1], device=starts.device)
    if periodic:
        positions = positions % (size + size % 2)
    inside = (positions >= 0) & (positions < size)
    return positions.clamp(0, size - 1), filters * inside
