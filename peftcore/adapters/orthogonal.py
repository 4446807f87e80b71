"""OrthogonalTransform: W' = W·R, the family of methods that rotate or reflect what a layer is given."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from peftcore.adapters.delta import MATRIX_KINDS
from peftcore.adapters.transform import WeightTransform
from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig


class BlockConfig(LayerConfig):
    """What every method with blocks of R can be asked; a class names the fields with their number and their size."""

    count_field: ClassVar[str]
    size_field: ClassVar[str]

    def validate(self) -> None:
        """Check the fields, and that the blocks are given by their number or by their size."""
        super().validate()
        check_blocks(self, self.count_field, self.size_field)


class OrthogonalTransform(WeightTransform):
    """W' = W·R, where R is orthogonal.

    The author writes :meth:`factors` and :meth:`turn`.
    A linear layer's input is turned instead of its weight, and so are the vectors that an embedding puts out, whose
    inputs have no directions: there, W' = R·W.
    The weight of a convolution is turned as the matrix ``[out, in / groups · kernel]``, so all groups share R, as
    stacked experts do.

    Attributes:
        block_dropout: Probability with which training leaves a block of :meth:`factors` out, where they are blocks.
    """

    kinds: ClassVar[frozenset[str]] = MATRIX_KINDS

    block_dropout: float = 0.0

    @abstractmethod
    def factors(self) -> Tensor:
        """Return what R is made of, in float32 or finer: what it costs is paid once per call."""

    @abstractmethod
    def turn(self, vectors: Tensor, factors: Tensor, back: bool) -> Tensor:
        """Return R·v, or Rᵀ·v, for each vector.

        Args:
            vectors: ``[..., n]``, with n from :func:`turned_size`.
            factors: As :meth:`factors` returns them, perhaps in another dtype, perhaps with blocks left out.
            back: Whether to apply Rᵀ.
        """

    def acts_on_input(self) -> bool:
        """Whether the layer is linear, and the input can be turned."""
        return self.base.kind == "linear"

    def acts_on_output(self) -> bool:
        """Whether the layer is an embedding, and the output can be turned."""
        return self.base.kind == "embedding"

    def pre(self, x: Tensor) -> Tensor:
        """Return R·x."""
        return self._turned(x, self._factors_in_call())

    def post(self, output: Tensor) -> Tensor:
        """Return an embedding's output, turned."""
        return self._turned(output, self._factors_in_call())

    def transform(self, weight: Tensor) -> Tensor:
        """Return W·R; of an embedding, R·W."""
        return self.turned_weight(weight, self.factors())

    def transform_in_call(self, weight: Tensor) -> Tensor:
        """Return the same, in training without the blocks that dropout has chosen."""
        return self.turned_weight(weight, self._factors_in_call())

    def turned_weight(self, weight: Tensor, factors: Tensor) -> Tensor:
        """Return the weight that R makes of a canonical one; to be overridden where that is not all.

        Args:
            weight: As :meth:`transform` takes it.
            factors: As :meth:`turn` takes them.
        """
        if self.base.kind == "embedding":
            return self._turned(weight.mT, factors).mT
        rows = weight.reshape(-1, turned_size(self.base))
        return self._turned(rows, factors, back=True).reshape(weight.shape)

    def _turned(self, vectors: Tensor, factors: Tensor, back: bool = False) -> Tensor:
        return self.turn(vectors, factors.to(vectors.dtype), back)

    def _factors_in_call(self) -> Tensor:
        factors = self.factors()
        return _drop_blocks(factors, self.block_dropout) if self.training and self.block_dropout > 0 else factors


def turned_size(base: BaseLayer) -> int:
    """Return the size of R on a layer: an embedding's vectors', elsewhere that of the weight's rows."""
    return base.out_features if base.kind == "embedding" else base.matrix_shape[1]


def cayley(skew: Tensor) -> Tensor:
    """Return (I + S)·(I − S)⁻¹, which is orthogonal if S is skew-symmetric; in float32 or finer.

    Args:
        skew: ``[..., b, b]``.
    """
    skew = skew.to(torch.promote_types(skew.dtype, torch.float32))
    identity = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
    return torch.linalg.solve(identity - skew, identity + skew)


def cayley_series(skew: Tensor, terms: int) -> Tensor:
    """Return the start of the series of :func:`cayley`, (I + Q)·(I + Q + Q² + …), which takes no inverse.

    Args:
        skew: Q, ``[..., b, b]``.
        terms: Where it is cut off, counted as HF PEFT's files need it.
    """
    coefficients = [1.0, 2.0][:terms] if terms < 3 else [1.0, *[2.0] * (max(terms, 4) - 2), 1.0]
    identity = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
    # Horner's rule in Q², whose coefficients are polynomials of degree 1 in Q: half as many products as in Q.
    pairs = [torch.add(one * identity, skew, alpha=two) for one, two in zip(*[iter(coefficients)] * 2, strict=False)]
    if len(coefficients) < 3:
        return pairs[0] if pairs else identity.expand_as(skew)
    square = skew @ skew
    odd = len(coefficients) % 2
    total = torch.add(pairs[-1], square, alpha=coefficients[-1]) if odd else pairs[-1]
    for pair in pairs[-2::-1]:
        total = pair + total @ square
    return total


def skew_symmetric(entries: Tensor, size: int, limit: float | None = None) -> Tensor:
    """Return skew-symmetric matrices ``[..., size, size]``, in float32 or finer.

    Args:
        entries: Their upper triangles, row by row, ``[..., size · (size - 1) / 2]``.
        size: Their side.
        limit: The largest Frobenius norm; longer ones are made as long as that. None for none.
    """
    wide = torch.promote_types(entries.dtype, torch.float32)
    rows, columns = torch.triu_indices(size, size, 1, device=entries.device)
    nothing = torch.zeros(*entries.shape[:-1], size * size, device=entries.device, dtype=wide)
    upper = nothing.index_copy(-1, rows * size + columns, entries.to(wide)).reshape(*entries.shape[:-1], size, size)
    skew = upper - upper.mT
    if limit is None:
        return skew
    norms = torch.linalg.matrix_norm(skew, keepdim=True)
    return skew * (limit / norms.clamp(min=limit))


def turn_blocks(vectors: Tensor, blocks: Tensor, back: bool) -> Tensor:
    """Multiply vectors by the block-diagonal matrix of blocks, or by its transpose.

    Args:
        vectors: ``[..., blocks · b]``.
        blocks: ``[blocks, b, b]``.
        back: Whether to transpose.
    """
    count, size, _ = blocks.shape
    pieces = vectors.reshape(-1, count, size).transpose(0, 1)
    return torch.bmm(pieces, blocks if back else blocks.mT).transpose(0, 1).reshape(vectors.shape)


def _drop_blocks(blocks: Tensor, probability: float) -> Tensor:
    """Put the identity into the place of some blocks ``[..., b, b]``."""
    kept = torch.rand(blocks.shape[:-2], device=blocks.device) >= probability
    identity = torch.eye(blocks.shape[-1], device=blocks.device, dtype=blocks.dtype)
    return torch.where(kept[..., None, None], blocks, identity)


def check_blocks(config: LayerConfig, count_field: str, size_field: str) -> None:
    """Check that a config gives the number of blocks or their size: one follows from the other.

    Raises:
        ConfigError: It gives both, or neither.
    """
    count, size = getattr(config, count_field), getattr(config, size_field)
    if bool(count) == bool(size):
        config.refuse(count_field, f"give either it or {size_field} and set the other to 0, got {count} and {size}")


def block_layout(
    base: BaseLayer, config: LayerConfig, count_field: str, size_field: str, *, nearest: bool = False
) -> tuple[int, int]:
    """Return how many blocks R has on a layer, and their size.

    Args:
        base: The layer's view.
        config: Gives one of the two, see :func:`check_blocks`.
        count_field: The field with the number of blocks.
        size_field: The field with their size.
        nearest: Whether to take the nearest number that divides the layer's, the smaller of two.

    Raises:
        ConfigError: The number asked for does not divide the layer's, or blocks of size 1 would hold nothing.
    """
    total = turned_size(base)
    field = count_field if getattr(config, count_field) else size_field
    asked = getattr(config, field)
    layer = f"the {total} features of a {base}"
    fitting = min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - asked))
    if fitting != asked and not nearest:
        config.refuse(field, f"{asked} does not divide {layer}; the nearest number that does is {fitting}")
    count, size = (fitting, total // fitting) if field == count_field else (total // fitting, fitting)
    if size == 1:
        config.refuse(field, f"cuts {layer} into blocks of size 1, in which nothing can be turned")
    return count, size
