"""LilyAdapter: a factor into few dimensions, and a mixture of factors out of them, chosen by what comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from peftcore.adapters.bypass import Bypass
from peftcore.base_layers import BaseLayer
from peftcore_lily.config import LilyConfig


class Shared(NamedTuple):
    """The factors that a layer has from layers before it; None for what it has of its own."""

    lily_A: nn.Linear | None = None
    lily_B: nn.Linear | None = None


class LilyAdapter(Bypass):
    """Lily on one layer: y = W x + s · (Σₑ shareₑ(x) · Bₑ)ᵀ A x (arXiv 2407.09946).

    Its parameters are ``lily_A.weight`` ``[r, in]``, ``lily_B.weight`` ``[num_B · r, out]`` and
    ``lily_router.weight`` ``[num_B, r]``; A and B stand in the first of the layers that share them.
    The shares are softmax(router · A x), averaged over what ``average_over`` says.
    """

    commutes = True
    unmergeable_because = "its router weighs the experts by the input"

    shared: Shared
    lily_A: nn.Linear
    lily_B: nn.Linear

    def __init__(self, base: BaseLayer, config: LilyConfig, shared: Shared | None = None) -> None:
        super().__init__(base, config, shared or Shared())
        self.scaling = config.scaling
        self.average_over = config.average_over
        # Like torch's own layers all of it starts uniform within ±1/√fan-in, but for B.
        self.lily_router = nn.Linear(config.r, config.num_B, bias=False)
        if self.shared.lily_A is None:
            self.lily_A = nn.Linear(base.in_features, config.r, bias=False)
        if self.shared.lily_B is None:
            self.lily_B = nn.Linear(base.out_features, config.num_B * config.r, bias=False)
            if config.init_weights:
                nn.init.zeros_(self.lily_B.weight)
        # Kept out of the module tree: they stand there already.
        self.__dict__.update({name: factor for name, factor in self.shared._asdict().items() if factor is not None})

    def repeated_tensors(self) -> Mapping[str, Tensor]:
        """Return the factors that other layers have."""
        return {f"{name}.weight": f.weight for name, f in self.shared._asdict().items() if f is not None}

    def change(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the mixture's effect on A x."""
        # Layers on several devices may share a factor.
        a, b, router = self.lily_A.weight.to(x), self.lily_B.weight.to(x), self.lily_router.weight.to(x)
        features = nn.functional.linear(x, a)
        shares = nn.functional.linear(features, router).softmax(-1)
        experts = b.reshape(len(router), -1, b.shape[1])
        if self.average_over == "call":
            mixture = torch.einsum("e,ero->ro", shares.reshape(-1, len(router)).mean(0), experts)
            return features @ (mixture * self.scaling)
        by_row = shares.flatten(1, -2).mean(1) if shares.dim() > 2 else shares
        mixture = torch.einsum("...e,ero->...ro", by_row, experts) * self.scaling
        return torch.einsum("n...r,nro->n...o" if shares.dim() > 1 else "r,ro->o", features, mixture)
