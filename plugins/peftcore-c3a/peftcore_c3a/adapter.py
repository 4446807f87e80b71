"""C3AAdapter: a matrix of circulant blocks, added to a frozen weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.recomputing import recomputed
from peftcore.adapters.sizes import check_divisor
from peftcore.base_layers import BaseLayer
from peftcore_c3a.config import C3AConfig

_INITS: dict[bool | str, Callable[[Tensor], object]] = {
    True: nn.init.zeros_,
    False: nn.init.xavier_uniform_,
    "gaussian": nn.init.normal_,
    "kaiming_uniform": lambda kernel: nn.init.kaiming_uniform_(kernel, a=math.sqrt(5)),
    "xavier_uniform": nn.init.xavier_uniform_,
}


class C3AAdapter(WeightDelta):
    """Circular convolution on one layer: Δ is made of circulant blocks (arXiv 2407.19342).

    ``c3a_kernel`` is ``[out / b, in / b, b]`` with block size b. Row p of a block holds its kernel shifted to the right
    by p: entry (p, q) is kernel[(q - p) mod b] / in. So a block correlates a piece of the input with its kernel, which
    the Fourier transform turns into a product.

    Raises:
        ConfigError: The block size does not divide both sizes of the layer.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "attention", "parameter"})

    def __init__(self, base: BaseLayer, config: C3AConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_divisor(base, config, "block_size")
        self.block_size = config.block_size
        blocks = [size // config.block_size for size in base.matrix_shape]
        kernels = [torch.empty(*blocks, config.block_size) for _ in range(base.stack)]
        for kernel in kernels:
            _INITS[config.init_weights](kernel)
        self.c3a_kernel = nn.Parameter(torch.stack(kernels) if base.stack > 1 else kernels[0])

    def delta_weight(self) -> Tensor:
        """Return the blocks, side by side."""
        place = torch.arange(self.block_size, device=self.c3a_kernel.device)
        blocks = self.c3a_kernel[..., (place - place[:, None]) % self.block_size] / self.base.in_features
        return blocks.transpose(-3, -2).reshape(self.base.weight_shape)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return Δ · x by way of the Fourier transform; Δ is never formed."""
        if x.numel() == 0:
            return super().delta_forward(x)  # there are no transforms of nothing
        return recomputed(self._correlate, x)

    def _correlate(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # there are no transforms in less
        pieces = x.to(wide).reshape(*x.shape[:-1], self.c3a_kernel.shape[1], self.block_size)
        kernels = torch.fft.rfft(self.c3a_kernel.to(wide) / self.base.in_features)
        spectrum = torch.einsum("...if,oif->...of", torch.fft.rfft(pieces), kernels.conj())
        return torch.fft.irfft(spectrum, n=self.block_size).flatten(-2).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block_size={self.block_size}"
