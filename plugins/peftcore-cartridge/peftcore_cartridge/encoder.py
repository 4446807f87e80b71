"""CartridgeEncoder: a table of keys and values, the first rows of which are frozen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftcore.prompts import KeyValueTable, PromptSizes
from peftcore_cartridge.config import CartridgeConfig


class CartridgeEncoder(KeyValueTable):
    """Keys and values for every layer (arXiv 2506.06266).

    The rows ``[tokens, layers · 2 · heads · head_dim]`` that the file holds as ``prompt_embeddings`` are two tensors
    here: ``frozen_embedding``, a buffer, which no optimizer sees and no weight decay shrinks, and behind it
    ``trainable_embedding``. They start at random, until one of the functions of :mod:`peftcore_cartridge.prefill` lets
    them start from what the model itself makes of a text.
    """

    frozen_embedding: Tensor

    def __init__(self, config: CartridgeConfig, sizes: PromptSizes, model: nn.Module) -> None:
        super().__init__(config, sizes, model)
        (tokens, width), frozen = self.table_shape(config), config.num_frozen_tokens
        self.register_buffer("frozen_embedding", torch.randn(frozen, width))
        self.trainable_embedding = nn.Parameter(torch.randn(tokens - frozen, width))

    def table(self) -> Tensor:
        """Return the virtual tokens, ``[tokens, width]``."""
        return torch.cat([self.frozen_embedding, self.trainable_embedding])

    def saved_module(self) -> nn.Module:
        """Return a module that holds a copy of the table under the name that files have."""
        saved = nn.Module()
        saved.register_buffer("prompt_embeddings", self.table().detach())
        return saved

    @torch.no_grad()
    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take the table out of a file, if it has the right shape."""
        rows = state.get("prompt_embeddings")
        if rows is not None and rows.shape == self.table().shape:
            self.frozen_embedding.copy_(rows[: len(self.frozen_embedding)])
            self.trainable_embedding.copy_(rows[len(self.frozen_embedding) :])
