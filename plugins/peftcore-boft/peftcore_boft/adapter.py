"""BOFTAdapter: a product of sparse rotations, laid out as a butterfly, and a scale of each output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.orthogonal import OrthogonalTransform, block_layout, cayley, turn_blocks
from peftcore.base_layers import BaseLayer
from peftcore_boft.config import BOFTConfig


class BOFTAdapter(OrthogonalTransform):
    """Orthogonal butterfly finetuning of one layer, R = B₁ · … · B_m (arXiv 2311.06243).

    Factor i rotates blocks of size b, each made of two halves that lie 2ⁱ⁻¹ half blocks apart; all m = 1 + log₂(blocks)
    factors join everything with everything.
    A block is the Cayley transform of the skew-symmetric part of what is trained.
    The bias is not scaled.

    Attributes:
        boft_R: ``[m, blocks, b, b]``.
        boft_s: The scale, ``[out, 1]``; on a convolution ``[1, out]``, so that files fit.

    Raises:
        ConfigError: The blocks do not divide the layer, or there are too few of them for so many factors.
    """

    shown = ("blocks", "size")

    def __init__(self, base: BaseLayer, config: BOFTConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.blocks, self.size = block_layout(base, config, "boft_block_num", "boft_block_size")
        number = config.boft_n_butterfly_factor
        if self.blocks % 2 ** (number - 1) or (number > 1 and self.size % 2):
            needs = f"blocks of an even size, and a number of them that {2 ** (number - 1)} divides"
            has = f"{base} has {self.blocks} of size {self.size}"
            config.refuse("boft_n_butterfly_factor", f"{number} needs {needs}; {has}")
        self.block_dropout = config.boft_dropout
        rotations = torch.zeros(number, self.blocks, self.size, self.size)
        scale = torch.ones((1, base.out_features) if base.kind.startswith("conv") else (base.out_features, 1))
        if not config.init_weights:
            rotations.normal_(std=0.1)
            scale.normal_(1, 0.1)
        self.boft_R, self.boft_s = nn.Parameter(rotations), nn.Parameter(scale)

    def factors(self) -> Tensor:
        """Return the blocks of all factors, ``[m, blocks, b, b]``."""
        return cayley((self.boft_R - self.boft_R.mT) / 2)

    def turn(self, vectors: Tensor, factors: Tensor, back: bool) -> Tensor:
        """Turn by one factor after the other."""
        levels = list(enumerate(factors))
        for level, blocks in levels if back else reversed(levels):
            distance = 2**level
            turned = turn_blocks(_regrouped(vectors, blocks, 2, distance), blocks, back)
            vectors = _regrouped(turned, blocks, distance, 2)
        return vectors

    def acts_on_output(self) -> bool:
        """Whether the output can be scaled, and an embedding's turned."""
        return self.base.kind in ("linear", "embedding")

    def post(self, output: Tensor) -> Tensor:
        """Return s ∘ y, an embedding's y turned before."""
        if self.base.kind == "embedding":
            output = super().post(output)
        return output * self.boft_s.flatten()

    def turned_weight(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return s ∘ (W·R)."""
        matrices = super().turned_weight(weight, factors).reshape(self.base.stack, self.base.out_features, -1)
        return (matrices * self.boft_s.reshape(-1, 1)).reshape(weight.shape)


def _regrouped(vectors: Tensor, blocks: Tensor, rows: int, columns: int) -> Tensor:
    """Read the half blocks of each group, which lie row by row, column by column."""
    if rows * columns == 2:
        return vectors
    *batch, size = vectors.shape
    half = blocks.shape[-1] // 2
    grid = vectors.reshape(*batch, size // (rows * columns * half), rows, columns, half)
    return grid.transpose(-3, -2).reshape(*batch, size)


def with_factors(rotations: Tensor, number: int) -> Tensor:
    """Return the parameter with so many factors, those that it lacks being the identity."""
    missing = max(0, number - len(rotations))
    return torch.cat((rotations, rotations.new_zeros(missing, *rotations.shape[1:])))
