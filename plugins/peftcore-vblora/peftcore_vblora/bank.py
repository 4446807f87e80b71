"""VectorBank: the vectors of which all layers of an adapter are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from peftcore.base_layers import BaseLayer
from peftcore_vblora.config import VBLoRAConfig


class VectorBank(nn.Module):
    """The trained vectors that an adapter's layers share.

    Attributes:
        vblora_vector_bank: ``[num_vectors, vector_length]``, uniform within ±``init_vector_bank_bound`` at the start.
    """

    def __init__(self, config: VBLoRAConfig, bases: Sequence[BaseLayer]) -> None:
        super().__init__()
        bound = config.init_vector_bank_bound
        empty = torch.empty(config.num_vectors, config.vector_length)
        self.vblora_vector_bank = nn.Parameter(empty.uniform_(-bound, bound))
