"""VBLoRAAdapter: factors whose pieces are mixtures of a few vectors from one bank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.sizes import check_divisor
from peftcore.adapters.taking import take
from peftcore.base_layers import BaseLayer
from peftcore.exceptions import CheckpointError
from peftcore_vblora.bank import VectorBank
from peftcore_vblora.config import VBLoRAConfig
from peftcore_vblora.top_k import INDICES, WEIGHTS, logits_of, top_k_of

_LOGITS = ("vblora_logits_A", "vblora_logits_B")


class VBLoRAAdapter(LowRankDelta):
    """Low-rank adaptation of one layer from a bank of vectors: Δ = B · A (arXiv 2405.15179).

    Rows of A and columns of B are cut into pieces of the vectors' length b. Each piece is a mixture of the k vectors
    with the largest logits, weighted by their softmax.
    The parameters are ``vblora_logits_A`` ``[r, in · kernel / b, vectors]`` and ``vblora_logits_B``
    ``[out / b, r, vectors]``; where experts are stacked, each has its own, ``[experts, …]``.
    With ``save_only_topk_weights``, files hold what :mod:`peftcore_vblora.top_k` says instead.
    Of a convolution with groups, ``in`` counts the channels of one group.

    Raises:
        ConfigError: The vectors' length does not divide a size of the weight, or dropout can't act on the layer.
    """

    shared: VectorBank
    #: Whether the logits come from a file that had the chosen vectors' weights alone.
    has_top_k_only: bool = False

    def __init__(self, base: BaseLayer, config: VBLoRAConfig, shared: VectorBank) -> None:
        super().__init__(base, config, shared)
        self.topk, self.saves_top_k = config.topk, config.save_only_topk_weights
        check_divisor(base, config, "vector_length")
        out, into = (size // config.vector_length for size in base.matrix_shape)
        for name, pieces in zip(_LOGITS, ((config.r, into), (out, config.r)), strict=True):
            logits = torch.randn(*base.stack_shape, *pieces, config.num_vectors) * config.init_logits_std
            self.register_parameter(name, nn.Parameter(logits))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B, their pieces mixed.

        Raises:
            CheckpointError: The adapter is to be trained, and its file had the chosen vectors' weights alone.
        """
        a, b = (getattr(self, name) for name in _LOGITS)
        if self.has_top_k_only and self.training and a.requires_grad:
            raise CheckpointError(
                "This adapter comes from a file with top-k weights alone: the other vectors could never be chosen "
                "again. Use or merge it, or train one that was saved with save_only_topk_weights=False."
            )
        return self._mixed(a).flatten(-2), self._mixed(b).mT.flatten(-3, -2)

    def _mixed(self, logits: Tensor) -> Tensor:
        """Return for each piece the mixture of its top k vectors, ``[…, vector_length]``."""
        values, indices = logits.topk(self.topk, -1)
        vectors = self.shared.vblora_vector_bank.to(logits)[indices]
        return (values.softmax(-1).unsqueeze(-1) * vectors).sum(-2)

    def saved_module(self) -> nn.Module:
        """Return this module; with ``save_only_topk_weights``, one that holds the small form."""
        if not self.saves_top_k:
            return self
        saved = nn.Module()
        for name in _LOGITS:
            indices, weights = top_k_of(getattr(self, name).detach(), self.topk)
            saved.register_buffer(f"{name}{INDICES}", indices)
            saved.register_buffer(f"{name}{WEIGHTS}", weights)
        return saved

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take the logits from the small form, which :meth:`saved_module` holds for the occasion only."""
        for name in _LOGITS:
            indices, weights = state.get(name + INDICES), state.get(name + WEIGHTS)
            if indices is not None and weights is not None:
                take(self, name, logits_of(indices, weights, getattr(self, name).shape[-1]))
                self.has_top_k_only = True
