"""The models that are adapted: shapes without meaning, made of nothing but ``nn.Module``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ATTENTION = ("q", "o")
EXPERT = ("gate", "up", "down")
#: The projections of a decoder's block.
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class Linears(nn.Module):
    """Linears of one width side by side, called by their names."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(width, width))


class ExpertBlock(Linears):
    """q, o and a list of experts of three Linears each: 4 + 4 · experts modules, 2 + 3 · experts of them Linears."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__(ATTENTION, width)
        self.experts = nn.ModuleList(Linears(EXPERT, width) for _ in range(experts))


class Stack(nn.Module):
    """A list of blocks: 2 modules more than they have."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


@dataclass(frozen=True)
class ExpertShape:
    """How large a mixture-of-experts model is."""

    blocks: int
    experts: int

    #: The names that a config targets: every Linear.
    targets = (*ATTENTION, *EXPERT)

    @property
    def modules(self) -> int:
        """Modules of the model, itself included."""
        return 2 + self.blocks * (4 + 4 * self.experts)

    @property
    def linears(self) -> int:
        """Linears of the model, all of which are adapted."""
        return self.blocks * (2 + 3 * self.experts)

    def build(self) -> nn.Module:
        """Return the model, on the meta device."""
        with torch.device("meta"):
            return Stack([ExpertBlock(self.experts, width=64) for _ in range(self.blocks)])

    def __str__(self) -> str:
        return f"{self.modules:,} modules"


SMALL = ExpertShape(blocks=4, experts=64)
MIDDLING = ExpertShape(blocks=8, experts=128)
LARGE = ExpertShape(blocks=16, experts=256)


def projections(blocks: int, names: Sequence[str], width: int = 64) -> nn.Module:
    """Return a model of blocks that hold the named Linears, on the CPU."""
    return Stack([Linears(names, width) for _ in range(blocks)])


class Block(nn.Module):
    """A Linear, with a ReLU behind it or not."""

    def __init__(self, width: int, relu: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[tokens, width]`` to ``[tokens, width]``."""
        y: Tensor = self.linear(x)
        return y.relu() if self.relu else y


class Feedforward(Stack):
    """Square Linears one behind the other, frozen."""

    def __init__(self, depth: int, width: int, *, relu: bool = False) -> None:
        super().__init__([Block(width, relu) for _ in range(depth)])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[tokens, width]`` to ``[tokens, width]``."""
        for block in self.blocks:
            x = block(x)
        return x
