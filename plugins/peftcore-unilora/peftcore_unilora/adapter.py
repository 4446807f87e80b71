"""UniLoraAdapter: two factors whose entries are picked from a vector that all layers share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_rank
from peftcore.base_layers import BaseLayer
from peftcore.exceptions import CheckpointError
from peftcore_unilora.config import UniLoraConfig
from peftcore_unilora.vector import UniLoraVector


class UniLoraAdapter(LowRankDelta):
    """Low-rank adaptation of one layer from one vector θ: Δ = B · A (arXiv 2506.00799).

    A ``[r, in · kernel]`` holds θ at ``unilora_indices_A``, times ``unilora_scales_A``, which is one by the square
    root of how many entries of all factors share an entry of θ: so the map from θ to the factors keeps distances.
    B ``[out, r]`` is made alike. These buffers are in files with ``save_indices`` only.
    Stacked experts have factors of their own, ``[experts, …]``; of a convolution with groups, ``in`` counts the
    channels of one group.

    Raises:
        ConfigError: The rank is above both sizes of the weight, or dropout can't act on the layer.
    """

    shared: UniLoraVector

    def __init__(self, base: BaseLayer, config: UniLoraConfig, shared: UniLoraVector) -> None:
        super().__init__(base, config, shared)
        check_rank(base, config, "r")
        chosen = dict(zip("AB", shared.indices(base, config.r), strict=True))
        device, kept = torch.empty(0).device, config.save_indices
        # The scales first: an adapter's first tensor says in which dtype it computes.
        for name, indices in chosen.items():
            self.register_buffer(f"unilora_scales_{name}", shared.counts[indices].rsqrt().to(device), persistent=kept)
        for name, indices in chosen.items():
            self.register_buffer(f"unilora_indices_{name}", indices.clone().to(device), persistent=kept)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        return self._factor("A"), self._factor("B")

    def _factor(self, name: str) -> Tensor:
        scales = self.get_buffer(f"unilora_scales_{name}")
        return self.shared.unilora_theta_d.to(scales)[self.get_buffer(f"unilora_indices_{name}")] * scales

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Check that every index names an entry of θ.

        Raises:
            CheckpointError: One does not.
        """
        length = len(self.shared.counts)
        for name, tensor in state.items():
            if name.startswith("unilora_indices") and not ((tensor >= 0) & (tensor < length)).all():
                raise CheckpointError(
                    f"{name} names entries that a vector of {length} does not have. The file is damaged."
                )
