"""AdamssAdapter: each cluster of a layer's outputs changes within a small subspace of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from peftcore.adapters.delta import ThinFactors
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.allocation import AllocatedAdapter, Importance
from peftcore.base_layers import BaseLayer
from peftcore_adamss.config import AdamssConfig
from peftcore_adamss.subspaces import find_subspaces


class AdamssAdapter(AllocatedAdapter, LowRankDelta):
    """Adaptive multi-subspace adaptation of one layer (https://openreview.net/forum?id=8ZdWmpYxT0).

    Δ of the outputs of a cluster k is Bₖ · Aₖ · V, where V are the leading right singular vectors of the frozen weight.
    The parameters are ``adamss_A.<k>`` ``[rank, r]`` and ``adamss_B.<k>`` ``[outputs of the cluster, rank]``; the
    buffer ``adamss_newB`` is V, ``[r, in · kernel]``, with one more column where the layer adds a bias, which then
    counts as one more column of the weight.
    Files do not hold which outputs belong to which cluster: that is found again from the frozen weight.

    Attributes:
        places: For each output, its row in the Bₖ one above the other, ``[out]``.
        frozen: Clusters that do not train any more.

    Raises:
        ConfigError: The layer has too few outputs, or too few different ones, or too small a rank.
    """

    changes_bias: bool = False  # known beforehand, and so not computed when it is asked

    adamss_newB: Tensor
    places: Tensor

    def __init__(self, base: BaseLayer, config: AdamssConfig, shared: None = None) -> None:
        super().__init__(base, config, shared)
        bias = base.bias if base.additive else None
        self.changes_bias = bias is not None
        self.frozen: set[int] = set()
        found = find_subspaces(base, bias, config)
        self.register_buffer("adamss_newB", found.basis)
        self.register_buffer("places", torch.cat(found.outputs).argsort(), persistent=False)
        shapes = [(len(part), len(rows)) for part, rows in zip(found.outputs, found.directions, strict=True)]
        starts = [torch.zeros(shape) if config.init_weights else 0.01 * torch.randn(shape) for shape in shapes]
        self.adamss_A = nn.ParameterList(found.directions)
        self.adamss_B = nn.ParameterList(starts)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the Aₖ · V one above the other, and the Bₖ on the diagonal, in the order of the outputs."""
        a, b = self._factors()
        return a[:, : self.base.matrix_shape[1]], b

    def _factors(self) -> tuple[Tensor, Tensor]:
        a = torch.cat(list(self.adamss_A)) @ self.adamss_newB
        return a, torch.block_diag(*self.adamss_B)[self.places]  # type: ignore[no-untyped-call]

    def delta_forward(self, x: Tensor) -> Tensor:
        """Return B · (A · V · (x, 1))."""
        if self.base.groups > 1 or not self.changes_bias:
            return super().delta_forward(x)
        a, b = self._factors()
        features = self.base.add_bias(self.into_rank(a[:, :-1], x), a[:, -1])
        return self.base.apply_pointwise(b, features)

    def thin_factors(self) -> ThinFactors | None:
        """Return the factors on a linear layer without a bias."""
        return None if self.changes_bias or self.base.kind != "linear" else ThinFactors(*self.factors())

    def delta_bias(self) -> Tensor | None:
        """Return the change of the bias, that of the weight's additional column, or None."""
        if not self.changes_bias:
            return None
        a, b = self._factors()
        return b @ a[:, -1]

    # --------------------------------------------------------------------------------------- its clusters

    def scores(self, importance: Importance) -> Tensor:
        """Return each cluster's importance, ``[clusters]``: the means over Aₖ and Bₖ; of frozen ones, below all."""
        means = [
            importance.of(f"adamss_A.{cluster}").mean() + importance.of(f"adamss_B.{cluster}").mean()
            for cluster in range(len(self.adamss_A))
        ]
        return torch.stack(means).index_fill(0, torch.tensor(sorted(self.frozen), dtype=torch.long), -1.0)

    def keep(self, kept: Tensor) -> None:
        """Freeze the clusters that are not kept, ``[clusters]``."""
        self.freeze((~kept).nonzero().flatten().tolist())

    def freeze(self, clusters: Iterable[int]) -> None:
        """Let clusters stay as they are from now on."""
        self.frozen.update(clusters)
        for cluster in self.frozen:
            for parameter in (self.adamss_A[cluster], self.adamss_B[cluster]):
                parameter.requires_grad_(False)
                parameter.grad = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={len(self.adamss_newB)}, clusters={len(self.adamss_A)}"
