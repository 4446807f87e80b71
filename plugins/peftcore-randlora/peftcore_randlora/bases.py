"""RandLoraBases: the random matrices that all layers of an adapter share."""

from __future__ import annotations

import functools
import math

import torch
from torch import Generator, Tensor

from peftcore.adapters.projections import Projections, kaiming
from peftcore_randlora.config import RandLoraConfig


class RandLoraBases(Projections):
    """The frozen A and Bᵢ of an adapter, each divided by its standard deviation.

    The numbers are those of HF PEFT, which draws them in bfloat16.

    Attributes:
        randlora_A: ``[r, 1, d]``, where d is the smaller one of the largest input and the largest output.
        randlora_B: ``[D, n, r]``, where D is the larger one, and n = ⌈d / r⌉ bases give full rank.

    Raises:
        ConfigError: What is drawn is too small, or too sparse, to have a standard deviation.
    """

    randlora_A: Tensor
    randlora_B: Tensor

    def draw(self, config: RandLoraConfig, out: int, into: int, generator: Generator) -> dict[str, Tensor]:
        """Return A and the Bᵢ."""
        short, long = sorted((out, into))
        number = math.ceil(short / config.r)
        if config.sparse or config.very_sparse:
            spread = math.sqrt(short) if config.very_sparse else 3.0
            a = _signs((config.r, 1, short), spread, generator)
            b = _signs((long, number, config.r), spread, generator)
        else:
            draw = functools.partial(kaiming, generator=generator, slope=math.sqrt(5), dtype=torch.bfloat16)
            a = draw((config.r, 1, short))
            b = torch.stack([draw((long, config.r)) for _ in range(number)], 1)
        return {name: _unit(name, drawn, config) for name, drawn in (("randlora_A", a), ("randlora_B", b))}


def _unit(name: str, drawn: Tensor, config: RandLoraConfig) -> Tensor:
    """Return what was drawn, divided by its standard deviation."""
    deviation = drawn.std() if drawn.numel() > 1 else drawn.new_zeros(())
    if not deviation > 0:
        config.refuse("r", f"{config.r} gives a {name} of {list(drawn.shape)}, too small to be drawn; raise it")
    return drawn.div_(deviation).float()


def _signs(size: tuple[int, ...], spread: float, generator: Generator) -> Tensor:
    """Draw -1 and 1, each with probability 1 / (2 · spread), and zeros (very sparse random projections, KDD 2006)."""
    drawn = torch.rand(size, generator=generator, device="cpu", dtype=torch.float32)
    tail = 1 / (2 * spread)
    return (drawn > 1 - tail).float() - (drawn < tail).float()
