"""RandLoraBases: the random matrices that all layers of an adapter share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcore.base_layers import BaseLayer
from peftcore_randlora.config import RandLoraConfig


class RandLoraBases(nn.Module):
    """The frozen A and Bᵢ of an adapter, as large as its largest layers; each layer uses the part that fits it.

    They are drawn on the CPU, so that one seed gives the same numbers on every device, and those of HF PEFT, which
    draws them in bfloat16. Each is divided by its standard deviation.

    Attributes:
        randlora_A: ``[r, 1, d]``, where d is the smaller one of the largest input and the largest output.
        randlora_B: ``[D, n, r]``, where D is the larger one, and n = ⌈d / r⌉ bases give full rank.

    Raises:
        ConfigError: What is drawn is too small, or too sparse, to have a standard deviation.
    """

    randlora_A: Tensor
    randlora_B: Tensor

    def __init__(self, config: RandLoraConfig, bases: Sequence[BaseLayer]) -> None:
        super().__init__()
        shapes = [base.matrix_shape for base in bases]
        short, long = sorted(max(sizes) for sizes in zip(*shapes, strict=True))
        generator = torch.Generator("cpu").manual_seed(config.projection_prng_key)
        number = math.ceil(short / config.r)
        if config.sparse or config.very_sparse:
            spread = math.sqrt(short) if config.very_sparse else 3.0
            a = _signs((config.r, 1, short), spread, generator)
            b = _signs((long, number, config.r), spread, generator)
        else:
            a = _uniform((config.r, 1, short), generator)
            b = torch.stack([_uniform((long, config.r), generator) for _ in range(number)], 1)
        for name, drawn in (("randlora_A", a), ("randlora_B", b)):
            unit = (drawn / drawn.std()).float() if drawn.numel() > 1 else drawn * math.nan
            if not unit.isfinite().all():
                config.refuse("r", f"{config.r} gives a {name} of {list(unit.shape)}, too small to be drawn; raise it")
            self.register_buffer(name, unit.to(torch.get_default_device()), persistent=config.save_projection)


def _uniform(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    empty = torch.empty(size, device="cpu", dtype=torch.bfloat16)
    return nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)


def _signs(size: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
    """Draw -1 and 1, each with probability 1 / (2 · spread), and zeros (very sparse random projections, KDD 2006)."""
    drawn = torch.rand(size, generator=generator, device="cpu", dtype=torch.float32)
    tail = 1 / (2 * spread)
    return (drawn > 1 - tail).float() - (drawn < tail).float()
