"""Projections: random, frozen tensors that all layers of an adapter share; layers train what scales them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.base_layers.base import BaseLayer
from peftcore.config import LayerConfig, layout_option, option


class ProjectionConfig(LayerConfig):
    """What every method with shared projections can be asked."""

    projection_prng_key: int = option(
        0, "Seed from which the projections are drawn.", at_least=-(2**63), at_most=2**63 - 1
    )
    save_projection: bool = option(
        True, "Whether files hold the projections; if not, they are drawn again from the seed when a file is loaded."
    )


class PairConfig(ProjectionConfig):
    """What every method around a :class:`ProjectionPair` can be asked."""

    r: int = option(256, "Rank: features between A and B; may be above the layers' sizes.", at_least=1)
    d_initial: float = option(0.1, "What the scales of these features start with.")
    fan_in_fan_out: bool = layout_option()
    init_weights: bool = option(
        True, "Start with output scales of 0, so that the model is as it was; False is for tests."
    )


class Projections(nn.Module):
    """The frozen tensors of an adapter, as large as its largest layers; each layer uses the part that fits it.

    The author writes :meth:`draw`.
    A method names its class as ``shared_cls``; an adapter module finds the tensors at ``self.shared``.

    Args:
        config: The method's config.
        bases: The views of all layers that the adapter is going to stand on.
    """

    def __init__(self, config: ProjectionConfig, bases: Sequence[BaseLayer]) -> None:
        super().__init__()
        out, into = (max(sizes) for sizes in zip(*(base.matrix_shape for base in bases), strict=True))
        generator = Generator("cpu").manual_seed(config.projection_prng_key)
        for name, drawn in self.draw(config, out, into, generator).items():
            self.register_buffer(name, drawn.to(torch.get_default_device()), persistent=config.save_projection)

    @abstractmethod
    def draw(self, config: Any, out: int, into: int, generator: Generator) -> Mapping[str, Tensor]:
        """Return the tensors by their names in files.

        They have to be made on the CPU, so that one seed gives the same numbers on every device.

        Args:
            config: The method's config.
            out: The largest number of outputs of the layers.
            into: The largest number of inputs, of a convolution times the size of its kernel.
            generator: Draws from the config's seed, on the CPU.
        """


class ProjectionPair(Projections):
    """The random A and B of methods that train vectors around them.

    Both are uniform within ±√(6 / columns) (Kaiming), and the numbers are those of HF PEFT.
    The buffers are ``<method>_A`` ``[rows_per_rank · r, largest in · kernel]`` and ``<method>_B`` ``[largest out, r]``,
    with r from the config.
    """

    #: Rows of A for each feature that B takes.
    rows_per_rank: ClassVar[int] = 1

    def draw(self, config: Any, out: int, into: int, generator: Generator) -> dict[str, Tensor]:
        """Return A and B."""
        shapes = {"A": (self.rows_per_rank * config.r, into), "B": (out, config.r)}
        return {f"{config.method}_{name}": kaiming(shape, generator) for name, shape in shapes.items()}


class Chain(NamedTuple):
    """Δ = diag(outer) · B · diag(inner) · A.

    Attributes:
        a: A ``[r, in · kernel]``.
        inner: What scales the r features, ``[r]``; where experts are stacked, ``[experts, r]``.
        b: B ``[out, r]``.
        outer: What scales the outputs, ``[out]`` or ``[experts, out]``; None if nothing does.
    """

    a: Tensor
    inner: Tensor
    b: Tensor
    outer: Tensor | None = None


class ScaledDelta(LowRankDelta):
    """A delta of two matrices, with vectors that scale what comes out of each.

    The author writes :meth:`chain`.
    The vectors scale features rather than matrices: training then needs no gradient in a matrix's size.
    """

    @abstractmethod
    def chain(self) -> Chain:
        """Return the matrices and the vectors."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return diag(inner) · A and diag(outer) · B."""
        a, inner, b, outer = self.chain()
        return inner.unsqueeze(-1) * a, b if outer is None else outer.unsqueeze(-1) * b

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return outer ∘ B · (inner ∘ A · x); Δ is formed for grouped convolutions."""
        if self.base.groups > 1:
            return super().delta_forward(x)
        a, inner, b, outer = self.chain()
        features = self.scaled(self.into_rank(a, self.entering(x)), inner)
        output = self.base.apply_pointwise(b, features)
        return output if outer is None else self.scaled(output, outer)

    def scaled(self, features: Tensor, factors: Tensor) -> Tensor:
        """Return an output-like tensor with its features multiplied by factors."""
        return self.base.with_features_last(lambda last: last * factors, features)


class ProjectedDelta(ScaledDelta):
    """A delta around the A and B of a :class:`ProjectionPair`, the ``shared_cls`` of its method.

    The author makes the vectors by :meth:`scales`.
    """

    shared: ProjectionPair

    def scales(self, config: PairConfig) -> tuple[nn.Parameter, nn.Parameter]:
        """Return what scales the outputs, ``[out]``, and the features behind A, ``[rows_per_rank · r]``, as they start.

        Where experts are stacked, each has vectors of its own, ``[experts, …]``.
        """
        inner = torch.randn(*self.base.stack_shape, self.shared.rows_per_rank * config.r)
        outer = torch.ones(*self.base.stack_shape, self.base.matrix_shape[0])
        if config.init_weights:
            inner.fill_(config.d_initial)
            outer.zero_()
        return nn.Parameter(outer), nn.Parameter(inner)

    def projections(self) -> tuple[Tensor, Tensor]:
        """Return A ``[rows_per_rank · r, in · kernel]`` and B ``[out, r]`` for this layer.

        They are views, unless the adapter computes elsewhere or in another dtype.
        """
        # Not by torch's walks over a module's tensors: this runs in every call.
        a, b = (tensor for tensor in self.shared._buffers.values() if tensor is not None)
        like = next(tensor for tensor in self._parameters.values() if tensor is not None)
        out, into = self.base.matrix_shape
        return a[:, :into].to(like), b[:out].to(like)


def kaiming(
    shape: Sequence[int], generator: Generator, *, slope: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a tensor made on the CPU, uniform within ±√(6 / ((1 + slope²) · fan-in)) (Kaiming, arXiv 1502.01852).

    Args:
        shape: Its shape; the fan-in is the size of all dimensions but the first.
        generator: Draws.
        slope: That of the leaky rectifier that the start is made for.
        dtype: In which numbers are drawn, which decides what they are.
    """
    empty = torch.empty(tuple(shape), device="cpu", dtype=dtype)
    return nn.init.kaiming_uniform_(empty, a=slope, generator=generator)
