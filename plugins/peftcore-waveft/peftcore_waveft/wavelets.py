"""The inverse wavelet transform in two dimensions, of one level, differentiable; filters are PyWavelets'."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    # Measured: an entry of a wave takes ten times as long as one of the whole does for each tap, and that as long again
    # as ten taps for all else.
    if 10 * len(places) * taps**2 > (taps + 10) * shape[0] * shape[1]:
        return filtered(scattered(entries, places, shape), filters, periodic)
    # Waves take much more room than entries, so they are not kept for the gradient.
    return recomputed(functools.partial(sum_of_waves, shape=shape, filters=filters, periodic=periodic), entries, places)


def filtered(spectrum: Tensor, filters: Filters, periodic: bool) -> Tensor:
    """Return what :func:`inverse_transform` does, from a whole spectrum: both are ``[…, rows, columns]``."""
    rows, columns = spectrum.shape[-2:]
    (height, top, _), (width, left, _) = frames = [_frame(n, len(filters[0]), periodic) for n in (rows, columns)]
    whole = pad(spectrum, (left, 2 * width - columns - left, top, 2 * height - rows - top))
    # What is on the right is high along the columns, so these are filtered with the halves of the rows as bands.
    right = whole.reshape(-1, 2, height, 2, width).movedim(3, 2).flatten(0, 1)
    down = _filtered_down(right, rows, filters, frames[0], periodic)
    across = _filtered_down(down.reshape(-1, 2, rows, width).mT, columns, filters, frames[1], periodic)
    return across.mT.reshape(spectrum.shape)


def _filtered_down(bands: Tensor, size: int, filters: Filters, frame: Frame, periodic: bool) -> Tensor:
    """Return the inverse transform along the columns, ``[…, size, any]``, of two bands, ``[…, 2, frame.half, any]``."""
    ahead, turns = frame.ahead, len(filters[0]) // 2
    if periodic:  # as far around as a wave may go
        around = torch.arange(-turns, frame.half + turns, device=bands.device) % frame.half
        bands, ahead = bands.index_select(-2, around), ahead + 2 * turns
    waves: Tensor = Filtering.apply(bands, filters, False)  # type: ignore[no-untyped-call]
    return waves.narrow(-2, ahead, size)


class Filtering(torch.autograd.Function):
    """Two bands, spread to every other place and filtered; or the adjoint of that, which is its gradient.

    It is some passes over the whole, each with one tap, in place; autograd alone would make a tensor for each.
    """

    @staticmethod
    def forward(source: Tensor, filters: Filters, adjoint: bool) -> Tensor:
        """Return the sum of both bands' waves, ``[…, 2 · n + taps − 2, any]``.

        Args:
            source: The bands, ``[…, 2, n, any]``; for the adjoint, shaped as the sum is, to which it gives bands.
            filters: Those of the bands.
            adjoint: Whether to return the adjoint.
        """
        *stack, length, width = source.shape
        more = len(filters[0]) // 2 - 1
        n = length // 2 - more if adjoint else length
        shape = (*stack, 2, n, width) if adjoint else (*stack[:-1], n + more, 2, width)
        result = source.new_zeros(shape)
        bands, waves = (result, source.reshape(*stack, n + more, 2, width)) if adjoint else (source, result)
        for band, taps in enumerate(filters):
            for place, tap in enumerate(taps):
                of_band = bands.select(-3, band)
                of_wave = waves.narrow(-3, place // 2, n).select(-2, place % 2)
                into, what = (of_band, of_wave) if adjoint else (of_wave, of_band)
                into.add_(what, alpha=tap)
        return result if adjoint else result.flatten(-3, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Filters, bool], output: Tensor) -> None:
        """Keep the filters."""
        _, ctx.filters, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return what the adjoint makes of the gradient."""
        return Filtering.apply(gradient, ctx.filters, not ctx.adjoint), None, None  # type: ignore[no-untyped-call]


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
