"""PrefixEncoder: a table of keys and values, or a network that makes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.prompts import KeyValueTable, PromptSizes
from peftcore_prefix_tuning.config import PrefixTuningConfig


class PrefixEncoder(KeyValueTable):
    """A prefix for every layer (arXiv 2101.00190).

    The parameter is ``prompt_embeddings`` ``[tokens, layers · 2 · heads · head_dim]``; with a projection the file has
    the table, and training has the :class:`Projection`.
    """

    def __init__(self, config: PrefixTuningConfig, sizes: PromptSizes, model: nn.Module) -> None:
        if config.prefix_projection:
            super().__init__(config, sizes, model, network=Projection(config, *self.table_shape(config)))
        else:
            start = torch.zeros if config.init_weights == "zero" else torch.randn
            super().__init__(config, sizes, model, table=start(self.table_shape(config)))

    @classmethod
    def sizes_in_config(cls, sizes: PromptSizes) -> dict[str, int]:
        """Return a model's sizes; the hidden layer is as wide as the keys if the config does not say otherwise."""
        found = super().sizes_in_config(sizes)
        return {**found, "encoder_hidden_size": found["token_dim"]}


class Projection(nn.Module):
    """A network that makes the table: an embedding per token, a hidden layer, all keys and values at once.

    Args:
        config: Says how wide embeddings and hidden layer are.
        tokens: Virtual tokens.
        width: Of all keys and values of one.
    """

    def __init__(self, config: PrefixTuningConfig, tokens: int, width: int) -> None:
        super().__init__()
        dim, hidden = config.token_dim or 0, config.encoder_hidden_size or 0
        self.embedding = nn.Embedding(tokens, dim)
        self.transform = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self) -> Tensor:
        """Return the table."""
        table: Tensor = self.transform(self.embedding.weight)
        return table
