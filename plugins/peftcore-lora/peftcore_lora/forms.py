"""The ways to write a layer's Δ by factors A and B.

========  =====================================  ==============================  ===============================
form      A                                      B                               Δ
========  =====================================  ==============================  ===============================
Channels  ``[r, in, *kernel]``                   ``[out, r, 1 …]``               B · A
Groups    ``[r, in / groups, *kernel]``          ``[out, r / groups, 1 …]``      B · A, group by group
Stripes   ``[r, in / groups, 1, kernel width]``  ``[out, r, kernel height, 1]``  Σ_r B[o, r, h] · A[r, i, w]
Experts   ``[experts · r, in]``                  ``[out, r · experts]``          B_e · A_e, with B's columns by
                                                                                 rank first, then expert
Full      none                                   as the weight                   B
========  =====================================  ==============================  ===============================

A form holds nothing; what it needs of a layer it asks the base layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from peftcore.base_layers import BaseLayer, Conv2dLayer
from peftcore.exceptions import ConfigError, NotMergeableError
from peftcore_lora.config import LoraConfig

Shape = tuple[int, ...]


class Form(ABC):
    """One way to write Δ."""

    @abstractmethod
    def shapes(self, base: BaseLayer, rank: int) -> tuple[Shape | None, Shape]:
        """Return the shapes of A and B; A's is None for a form without."""

    @abstractmethod
    def product(self, base: BaseLayer, a: Any, b: Tensor) -> Tensor:
        """Return Δ, shaped as ``base.weight_shape`` or as ``base.matrix_shape``."""

    def act(self, base: BaseLayer, a: Any, b: Tensor, x: Tensor, scaling: float) -> Tensor:
        """Return the layer's operation on ``x`` with ``scaling`` · Δ as its weight; here, by forming Δ."""
        return base.apply(self.product(base, a, b * scaling).reshape(base.weight_shape), x)

    def arranged(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors with their entries in this form's order; groups or experts stand in front of those given."""
        return a, b


class Channels(Form):
    """The layer itself into r features, then a pointwise map to the output."""

    def shapes(self, base: BaseLayer, rank: int) -> tuple[Shape, Shape]:
        out, *fan_in = base.weight_shape
        return (rank, *fan_in), (out, rank, *(1 for _ in fan_in[1:]))

    def product(self, base: BaseLayer, a: Tensor, b: Tensor) -> Tensor:
        return b.flatten(1) @ a.flatten(1)

    def act(self, base: BaseLayer, a: Tensor, b: Tensor, x: Tensor, scaling: float) -> Tensor:
        # The r features are the smallest tensor on the way, so the scaling acts there, and makes no other.
        return base.apply_pointwise(b.flatten(1), base.apply(a, x).mul_(scaling))


class Groups(Channels):
    """Channels of a grouped convolution, group by group.

    Files hold A as if there were no groups, with zeros where a group's features would see another's channels.
    """

    def shapes(self, base: BaseLayer, rank: int) -> tuple[Shape, Shape]:
        if rank % base.groups:
            raise ConfigError(
                f"LoraConfig.r: {rank} is no multiple of the {base.groups} groups of a {type(base.layer).__name__}. "
                "Give that layer one in rank_pattern, or exclude it."
            )
        out, *fan_in = base.weight_shape
        return (rank, *fan_in), (out, rank // base.groups, *(1 for _ in fan_in[1:]))

    @staticmethod
    def spread(base: BaseLayer, a: Tensor) -> Tensor:
        """Return A as files have it, ``[r, in, *kernel]``."""
        own = a.reshape(base.groups, -1, *a.shape[1:])
        whole = own.new_zeros(*own.shape[:2], base.groups, *own.shape[2:])
        group = torch.arange(base.groups, device=a.device)
        whole[group, :, group] = own
        return whole.flatten(2, 3).flatten(0, 1)

    @staticmethod
    def gather(base: BaseLayer, whole: Tensor) -> Tensor:
        """Return A, ``[r, in / groups, *kernel]``, from what files have."""
        grid = whole.reshape(base.groups, -1, base.groups, whole.shape[1] // base.groups, *whole.shape[2:])
        return grid.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)

    def product(self, base: BaseLayer, a: Tensor, b: Tensor) -> Tensor:
        a, b, groups = a.flatten(1), b.flatten(1), base.groups
        return (b.reshape(groups, -1, b.shape[1]) @ a.reshape(groups, -1, a.shape[1])).flatten(0, 1)


class AcrossGroups(Channels):
    """Channels of a grouped convolution whose features see the channels of all groups, as HF PEFT trains them.

    No grouped weight can hold that, so it comes from files only.
    """

    def product(self, base: BaseLayer, a: Tensor, b: Tensor) -> Tensor:
        raise NotMergeableError(f"A factor of this {type(base.layer).__name__} {ACROSS}.")


#: Why AcrossGroups can't be merged.
ACROSS = "joins channels of different groups, which no grouped weight can hold"


class Stripes(Form):
    """The balanced split of a Conv2d, whose weight is seen as a matrix (out · height) x (in · width)."""

    def shapes(self, base: BaseLayer, rank: int) -> tuple[Shape, Shape]:
        out, fan_in, height, width = base.weight_shape
        return (rank, fan_in, 1, width), (out, rank, height, 1)

    def product(self, base: BaseLayer, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("orh,riw->oihw", b.squeeze(3), a.squeeze(2))

    def act(self, base: BaseLayer, a: Tensor, b: Tensor, x: Tensor, scaling: float) -> Tensor:
        if isinstance(base, Conv2dLayer) and base.can_separate:
            return base.apply_separable(a * scaling, b, x)
        return super().act(base, a, b, x, scaling)


class Experts(Form):
    """Stacked experts ``[experts, out, in]``, each with factors of rank r of its own."""

    def shapes(self, base: BaseLayer, rank: int) -> tuple[Shape, Shape]:
        experts, out, fan_in = base.weight_shape
        return (experts * rank, fan_in), (out, rank * experts)

    def arranged(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, b.permute(1, 2, 0)

    def product(self, base: BaseLayer, a: Tensor, b: Tensor) -> Tensor:
        experts, out, fan_in = base.weight_shape
        return b.reshape(out, -1, experts).permute(2, 0, 1) @ a.reshape(experts, -1, fan_in)


class Full(Form):
    """Δ itself, where factors would be the larger."""

    def shapes(self, base: BaseLayer, rank: int) -> tuple[None, Shape]:
        return None, tuple(base.weight_shape)

    def product(self, base: BaseLayer, a: None, b: Tensor) -> Tensor:
        return b


def form_for(base: BaseLayer, config: LoraConfig) -> Form:
    """Choose the form in which a layer's Δ is written.

    Raises:
        ConfigError: The rank is no multiple of the layer's groups.
    """
    form: Form = Channels() if base.groups == 1 else Groups()
    if base.kind == "parameter" and len(base.weight_shape) == 3:
        form = Experts()
    elif config.conv_decomposition == "balanced" and base.kind == "conv2d":
        form = Stripes()
    if config.full_matrix_if_smaller:
        entries = sum(math.prod(shape) for shape in form.shapes(base, config.r) if shape)
        form = Full() if entries > base.weight_shape.numel() else form
    return form
