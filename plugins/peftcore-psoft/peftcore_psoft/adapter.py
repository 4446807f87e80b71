"""PsoftAdapter: a small rotation in the subspace of a frozen weight's leading singular directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.orthogonal import cayley, cayley_series, skew_symmetric
from peftcore.adapters.singular import SingularParts, decomposed, exact_parts
from peftcore.adapters.sizes import check_subspace
from peftcore.base_layers import BaseLayer
from peftcore_psoft.config import PsoftConfig


class PsoftAdapter(LowRankDelta):
    """Orthogonal finetuning of one layer in its principal subspace (arXiv 2505.11235).

    Δ = B · (diag(b) · R · diag(a) − I) · A, where B · A is the best approximation of the frozen weight with rank r, and
    R = (I + Q)·(I − Q)⁻¹ with a skew-symmetric Q, or the start of the series of that.
    The parameters are ``psoft_R.weight``, Q's upper triangle ``[r(r − 1)/2]``, or R itself ``[r, r]`` where it need not
    be orthogonal, ``psoft_R.vector_b`` and ``psoft_R.vector_a`` ``[r]``. Stacked experts have their own,
    ``[experts, …]``.
    Files do not hold A and B: they are found again from the frozen weight.

    Raises:
        ConfigError: The rank is above a size of the weight, or dropout can't act on the layer.
    """

    psoft_A: Tensor
    psoft_B: Tensor

    def __init__(self, base: BaseLayer, config: PsoftConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        check_subspace(base, config, "r")
        self.is_orthogonal = config.psoft_orth
        self.terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else None
        self.limit = config.cayley_neumann_eps if config.use_cayley_neumann else None
        for name, factor in zip("AB", principal_factors(base, config), strict=True):
            self.register_buffer(f"psoft_{name}", factor, persistent=False)
        self.psoft_R = nn.ParameterDict(_rotation(base.stack_shape, config))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A, and B · (diag(b) · R · diag(a) − I)."""
        rotation, held = self.rotation(), self.psoft_R
        if "vector_b" in held:
            rotation = held["vector_b"].unsqueeze(-1) * rotation
        if "vector_a" in held:
            rotation = rotation * held["vector_a"].unsqueeze(-2)
        identity = torch.eye(rotation.shape[-1], device=rotation.device, dtype=rotation.dtype)
        return self.psoft_A, self.psoft_B @ (rotation - identity).to(self.psoft_B)

    def rotation(self) -> Tensor:
        """Return R ``[r, r]``, in float32 or finer where it is computed."""
        entries = self.psoft_R["weight"]
        if not self.is_orthogonal:
            return entries
        skew = skew_symmetric(entries, self.psoft_A.shape[-2], self.limit)
        return cayley(skew) if self.terms is None else cayley_series(skew, self.terms)


def principal_factors(base: BaseLayer, config: PsoftConfig) -> tuple[Tensor, Tensor]:
    """Return A ``[r, in · kernel]`` and B ``[out, r]``, whose product is the best approximation of a frozen weight.

    R's entries in a file mean something only for the singular vectors, signs included, for which they were trained.
    So these must be found by the very same decomposition each time.
    """

    def sketched_parts(matrix: Tensor) -> SingularParts:
        """Find them by random projections, from the config's seed."""
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(config.random_seed)
            u, s, v = torch.svd_lowrank(matrix, q=config.r, niter=config.psoft_svd_lowrank_niter)
        return SingularParts(u, s, v.mT)

    parts = decomposed(base, config.r, exact_parts if config.psoft_svd == "full" else sketched_parts)
    if config.ab_svd_init == "psoft_init":
        return parts.v.contiguous(), parts.u * parts.s.unsqueeze(-2)
    return parts.halves()


def _rotation(stack: tuple[int, ...], config: PsoftConfig) -> dict[str, Tensor]:
    """Return what trains, as it starts."""
    r = config.r
    start = torch.zeros(*stack, r * (r - 1) // 2) if config.psoft_orth else torch.eye(r).repeat(*stack, 1, 1)
    if not config.init_weights:
        start = start + torch.randn_like(start) / 10
    scaled = {"vector_b": config.psoft_mag_b, "vector_a": config.psoft_mag_a}
    return {"weight": start, **{name: torch.ones(*stack, r) for name, trains in scaled.items() if trains}}
