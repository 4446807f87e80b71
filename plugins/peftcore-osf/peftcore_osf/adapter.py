"""OsfAdapter: what is weak in a frozen weight trains, and what is strong in it stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.singular import careful_parts, decomposed
from peftcore.base_layers import BaseLayer
from peftcore_osf.config import OsfConfig


class OsfAdapter(LowRankDelta):
    """Orthogonal subspace fine-tuning of one layer (arXiv 2504.07097).

    Δ = U · diag(S) · V − U₀ · diag(S₀) · V₀, where the second product is what the weak singular directions of the
    frozen weight make of it, and the first starts as the second.
    The parameters are ``osf_svd_params.U_low`` ``[out, k]``, ``.S_low`` ``[k]`` and ``.V_low`` ``[k, in · kernel]``,
    for the k weak directions; stacked experts have their own, ``[experts, …]``.
    The gradients of U and V are orthogonal to the strong directions.
    Files hold neither U₀, S₀ and V₀ nor the strong directions, which are found again from the frozen weight.

    Raises:
        ConfigError: All singular directions of the weight would be frozen, or none.
    """

    osf_U_start: Tensor
    osf_S_start: Tensor
    osf_V_start: Tensor
    osf_U_strong: Tensor | None
    osf_V_strong: Tensor | None

    def __init__(self, base: BaseLayer, config: OsfConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        self.projects_weights = config.project_weights
        rank = frozen_rank(base, config)
        u, s, v = decomposed(base, min(base.matrix_shape), careful_parts, torch.float64)
        kept = {"U_start": u[..., rank:], "S_start": s[..., rank:], "V_start": v[..., rank:, :]}
        strong = {"U_strong": _strong(u, rank), "V_strong": _strong(v.mT, rank)}
        for name, part in (kept | strong).items():
            held = None if part is None else part.clone(memory_format=torch.contiguous_format)
            self.register_buffer(f"osf_{name}", held, persistent=False)
        start: Any = torch.randn_like if config.init_weights is False else torch.clone
        low = {f"{name}_low": start(part) for name, part in zip("USV", self.started(), strict=True)}
        self.osf_svd_params = nn.ParameterDict(low)

    def trained(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, S and V; what comes back to U and V as a gradient is projected."""
        u, s, v = (self.osf_svd_params[f"{name}_low"] for name in "USV")
        u = self._free(u, self.osf_U_start, self.osf_U_strong)
        return u, s, self._free(v.mT, self.osf_V_start.mT, self.osf_V_strong).mT

    def _free(self, vectors: Tensor, weak: Tensor, strong: Tensor | None) -> Tensor:
        project: Any = projected if self.projects_weights else ProjectedGradient.apply
        return project(vectors, weak, True) if strong is None else project(vectors, strong, False)

    def started(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return U₀, S₀ and V₀."""
        return self.osf_U_start, self.osf_S_start, self.osf_V_start

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return V above V₀, and U · diag(S) beside −U₀ · diag(S₀)."""
        (u, s, v), (u0, s0, v0) = self.trained(), self.started()
        return torch.cat([v, v0], -2), torch.cat([u * s.unsqueeze(-2), u0 * -s0.unsqueeze(-2)], -1)

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return U · (S ∘ V · x) − U₀ · (S₀ ∘ V₀ · x), which takes no copies of the factors."""
        if self.base.groups > 1 or not self.osf_S_start.numel():
            return super().delta_forward(x)
        return self._through(x, *self.trained()) - self._through(x, *self.started())

    def _through(self, x: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
        features = self.base.with_features_last(lambda hidden: hidden * s, self.into_rank(v, x))
        return self.base.apply_pointwise(u, features)


def _strong(vectors: Tensor, rank: int) -> Tensor | None:
    """Return the first of some orthonormal columns, None where the others alone say what is orthogonal to them.

    They do where all columns together fill the space, and are used where they are not more than the first.
    """
    size, number = vectors.shape[-2:]
    return None if size == number <= 2 * rank else vectors[..., :rank]


class ProjectedGradient(torch.autograd.Function):
    """The identity, whose gradient is :func:`projected`.

    It stands in the computation and not on a parameter, as a hook would: so nothing that copies, pickles, replaces or
    steps parameters can lose it.
    """

    @staticmethod
    def forward(vectors: Tensor, basis: Tensor, onto: bool) -> Tensor:
        """Return the vectors."""
        return vectors.view_as(vectors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        """Keep the basis."""
        _, basis, ctx.onto = inputs
        ctx.save_for_backward(basis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient, projected."""
        (basis,) = ctx.saved_tensors
        return projected(gradient, basis.to(gradient.dtype), ctx.onto), None, None


def projected(vectors: Tensor, basis: Tensor, onto: bool) -> Tensor:
    """Return the parts of column vectors that lie in a subspace, or the parts that are orthogonal to it.

    Args:
        vectors: ``[..., n, any]``.
        basis: Orthonormal columns, ``[..., n, any]``.
        onto: Whether to return the former.
    """
    inside = basis @ (basis.mT @ vectors)
    return inside if onto else vectors - inside


def frozen_rank(base: BaseLayer, config: OsfConfig) -> int:
    """Return how many singular directions of a layer's weight are frozen.

    Raises:
        ConfigError: None, or all. An adapter for inference may have nothing that trains, as a file of HF PEFT's may.
    """
    most, asked = min(base.matrix_shape), config.effective_rank
    if asked is None:
        asked = 0.5
    rank = int(asked * most) if isinstance(asked, float) and asked <= 1 else int(asked)
    if rank >= most and config.inference_mode:
        return most
    if not 0 < rank < most:
        config.refuse(
            "effective_rank",
            f"{asked} freezes {rank} of the {most} singular directions of a {base}, which must be at least one and not "
            "all: choose another for that layer alone in rank_pattern, or exclude it",
        )
    return rank
