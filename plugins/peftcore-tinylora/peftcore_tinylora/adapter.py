"""TinyLoraAdapter: the leading singular directions of a frozen weight, mixed by a vector that layers may share."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.singular import decomposed, squared_parts
from peftcore.adapters.sizes import check_subspace
from peftcore.base_layers import BaseLayer
from peftcore_tinylora.config import TinyLoraConfig
from peftcore_tinylora.vectors import TinyLoraVectors


class TinyLoraAdapter(LowRankDelta):
    """Adaptation of one layer by a vector v: Δ = B · (Σᵢ vᵢ Pᵢ) · A (arXiv 2602.04118).

    B · A is the best approximation of the frozen weight with rank r, both with the square roots of the singular values
    in them.
    The buffers are ``tinylora_A`` ``[r, in · kernel]``, ``tinylora_B`` ``[out, r]`` and ``tinylora_P`` ``[u, r, r]``,
    which files hold with ``save_projection`` only. On an embedding A is ``[r, dim]`` and B ``[vocabulary, r]``, after
    the weight as it is stored. Stacked experts have A and B of their own, ``[experts, …]``.

    Raises:
        ConfigError: The rank is above a size of the weight, or dropout can't act on the layer. An adapter for inference
            takes the largest rank that there is, as HF PEFT did when it wrote the file.
    """

    shared: TinyLoraVectors
    tinylora_A: Tensor
    tinylora_B: Tensor
    tinylora_P: Tensor

    def __init__(self, base: BaseLayer, config: TinyLoraConfig, shared: TinyLoraVectors) -> None:
        super().__init__(base, config, shared)
        self._number = shared.number(base)
        if not config.inference_mode:
            check_subspace(base, config, "r")
        r = min(config.r, *base.matrix_shape)
        a, b = decomposed(base, r, functools.partial(squared_parts, rank=r)).halves()
        if base.kind == "embedding":
            a, b = b.mT, a.mT
        self.register_buffer("tinylora_A", a.contiguous())
        self.register_buffer("tinylora_B", b.contiguous())
        self.register_buffer("tinylora_P", self._drawn(config, r).to(a.device), persistent=config.save_projection)

    def _drawn(self, config: TinyLoraConfig, r: int) -> Tensor:
        generator = Generator("cpu").manual_seed(config.projection_seed + self._number)
        drawn = torch.randn(config.u, r, r, generator=generator, device="cpu", dtype=torch.float32)
        return drawn / r**0.5

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A, and B · Σᵢ vᵢ Pᵢ; on an embedding the same of the transposed product."""
        mixed = torch.einsum("u,uij->ij", self.shared.vector(self._number).to(self.tinylora_P), self.tinylora_P)
        if self.base.kind == "embedding":
            return self.tinylora_B.mT, (mixed @ self.tinylora_A).mT
        return self.tinylora_A, self.tinylora_B @ mixed
