"""Bottleneck adapters for peftcore: two methods, which differ in what goes into the bottleneck."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore import LayerConfig, PeftMethod, hookimpl, option
from peftcore.adapters.bypass import Bypass
from peftcore.adapters.starts import uniform
from peftcore.base_layers import BaseLayer

__all__ = [
    "ParallelAdapter",
    "ParallelAdapterConfig",
    "SequentialAdapter",
    "SequentialAdapterConfig",
]


class BottleneckConfig(LayerConfig):
    """What both methods can be asked; it states no method, so it is a base for several."""

    width: int = option(16, "Features in the bottleneck.", at_least=1)


class SequentialAdapterConfig(BottleneckConfig, method="sequential_adapter"):
    """A bottleneck behind the layer, y' = y + U · relu(V · y) (arXiv 1902.00751)."""


class ParallelAdapterConfig(BottleneckConfig, method="parallel_adapter"):
    """A bottleneck beside the layer, y' = y + s · U · relu(V · x) (arXiv 2110.04366)."""

    scaling: float = option(4.0, "s.")


class Bottleneck(Bypass):
    """U · relu(V · z) on one layer: ``bottleneck_down`` ``[width, features]``, ``bottleneck_up`` ``[out, width]``."""

    def __init__(self, base: BaseLayer, config: BottleneckConfig, features: int) -> None:
        super().__init__(base, config)
        self.bottleneck_down = nn.Parameter(uniform(config.width, features))
        self.bottleneck_up = nn.Parameter(torch.zeros(base.out_features, config.width))

    def through(self, z: Tensor) -> Tensor:
        """Return U · relu(V · z)."""
        return torch.relu(z.to(self.dtype) @ self.bottleneck_down.T) @ self.bottleneck_up.T


class SequentialAdapter(Bottleneck):
    """Reads what the layer, and the adapters before, put out; so its place among them matters."""

    unmergeable_because: ClassVar[str] = "its bottleneck is not linear"

    def __init__(self, base: BaseLayer, config: SequentialAdapterConfig, shared: None = None) -> None:
        super().__init__(base, config, base.out_features)

    def change(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the bottleneck of the output."""
        return self.through(output)


class ParallelAdapter(Bottleneck):
    """Reads what goes into the layer; so its place among others does not matter."""

    commutes: ClassVar[bool] = True
    unmergeable_because: ClassVar[str] = "its bottleneck is not linear"

    def __init__(self, base: BaseLayer, config: ParallelAdapterConfig, shared: None = None) -> None:
        super().__init__(base, config, base.in_features)
        self.scaling = config.scaling

    def change(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the bottleneck of the input, scaled."""
        return self.scaling * self.through(x)


@hookimpl
def register_peft_method() -> list[PeftMethod]:
    """Describe both methods, whose parameters have one prefix."""
    sequential = PeftMethod(
        config_cls=SequentialAdapterConfig,
        adapter_cls=SequentialAdapter,
        prefix="bottleneck_",
        shares_prefix=True,
        paper="1902.00751",
    )
    parallel = PeftMethod(
        config_cls=ParallelAdapterConfig,
        adapter_cls=ParallelAdapter,
        prefix="bottleneck_",
        shares_prefix=True,
        paper="2110.04366",
    )
    return [sequential, parallel]
