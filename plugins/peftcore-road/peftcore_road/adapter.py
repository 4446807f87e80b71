"""RoadAdapter: a 2 × 2 matrix for each pair of outputs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from peftcore.adapters.scale import OutputScale
from peftcore.base_layers import BaseLayer
from peftcore_road.config import RoadConfig


class RoadAdapter(OutputScale):
    """RoAd on one layer: each pair of outputs is rotated and scaled (arXiv 2409.00119).

    The outputs are cut into groups; in each, output i of the first half is paired with output i of the second::

        y₁' = α₁₁ cos θ₁₁ y₁ − α₁₂ sin θ₁₂ y₂
        y₂' = α₂₁ sin θ₂₁ y₁ + α₂₂ cos θ₂₂ y₂

    A pair has one angle θ and one scale α with ``road_1``, one of each per row with ``road_2``, one of each per entry
    with ``road_4``.
    Its parameters are ``road_theta`` and ``road_alpha``: ``[out / 2]``, ``[out]`` or ``[2 · out]``, group after group;
    in a group first all that the pairs have at 11, then those at 22, 12 and 21 that there are.

    Raises:
        ConfigError: The group size does not divide the outputs; on a grouped convolution, those of each of its groups,
            since the outputs of two groups see other inputs and no weight could mix them.
    """

    kinds: ClassVar[frozenset[str]] = OutputScale.kinds | {"embedding"}

    def __init__(self, base: BaseLayer, config: RoadConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        _check_groups(base, config)
        self.group_size, self.variant = config.group_size, config.variant
        size = int(config.variant.removeprefix("road_")) * base.out_features // 2
        draw = torch.zeros if config.init_weights else torch.randn
        self.road_theta = nn.Parameter(draw(size) / 2)
        self.road_alpha = nn.Parameter(1 + draw(size) / 2)

    def change_output(self, features: Tensor) -> Tensor:
        """Return the rotated pairs, by products with vectors alone."""
        partners = self._by_groups(features, 2).flip(-2).reshape(features.shape)
        own, other = self.coefficients()
        # The sum takes no memory of its own.
        return (features * own).add_(partners * other)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Return what each output is multiplied by, and what the other one of its pair is, both ``[out]``."""
        cos = self._by_place(self.road_alpha * self.road_theta.cos())
        sin = self._by_place(self.road_alpha * self.road_theta.sin())
        return cos[:, :2].flatten(), torch.stack([-sin[:, 2], sin[:, 3]], dim=1).flatten()

    def _by_place(self, entries: Tensor) -> Tensor:
        """Return entries as ``[groups, 4, pairs]``, for the places 11, 22, 12 and 21 of the pairs' matrices."""
        per_pair = 2 * len(entries) // self.base.out_features
        by_groups = self._by_groups(entries, per_pair)
        return by_groups.expand(-1, 4, -1) if per_pair == 1 else by_groups.repeat(1, 4 // per_pair, 1)

    def _by_groups(self, vectors: Tensor, rows: int) -> Tensor:
        """Return vectors ``[..., groups · rows · pairs]`` as ``[..., groups, rows, pairs]``."""
        groups, pairs = self.base.out_features // self.group_size, self.group_size // 2
        return vectors.reshape(*vectors.shape[:-1], groups, rows, pairs)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, variant={self.variant}, group_size={self.group_size}"


def _check_groups(base: BaseLayer, config: RoadConfig) -> None:
    outputs = base.out_features // base.groups
    if outputs % config.group_size:
        each = f"each of the {base.groups} groups of " if base.groups > 1 else ""
        layer = f"{each}a {type(base.layer).__name__}"
        config.refuse(
            "group_size", f"{config.group_size} does not divide the {outputs} outputs of {layer}; choose a divisor"
        )
