"""PrefixEncoder: a table of keys and values, or a network that makes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcore.prompts import KeyValueTable, PromptConfig, PromptSizes
from peftcore_prefix_tuning.config import PrefixTuningConfig


class PrefixEncoder(KeyValueTable):
    """A prefix for every layer (arXiv 2101.00190).

    The parameter is ``prompt_embeddings`` ``[tokens, layers · 2 · heads · head_dim]``; with a projection the file has
    the table, and training has the :class:`Projection`.
    """

    def __init__(self, config: PrefixTuningConfig, sizes: PromptSizes, model: nn.Module) -> None:
        if config.prefix_projection:
            super().__init__(config, sizes, model, network=Projection(config))
        else:
            tokens, width = config.num_virtual_tokens or 0, _width(config)
            table = torch.zeros(tokens, width) if config.init_weights == "zero" else torch.randn(tokens, width)
            super().__init__(config, sizes, model, table=table)

    @classmethod
    def sizes_in_config(cls, sizes: PromptSizes) -> dict[str, int]:
        """Return a model's sizes; the hidden layer is as wide as the keys if the config does not say otherwise."""
        found = super().sizes_in_config(sizes)
        return {**found, "encoder_hidden_size": found["token_dim"]}


class Projection(nn.Module):
    """A network that makes the table: an embedding per token, a hidden layer, all keys and values at once."""

    def __init__(self, config: PrefixTuningConfig) -> None:
        super().__init__()
        dim, hidden = config.token_dim or 0, config.encoder_hidden_size or 0
        self.embedding = nn.Embedding(config.num_virtual_tokens or 0, dim)
        self.transform = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, _width(config)))

    def forward(self) -> Tensor:
        """Return the table."""
        table: Tensor = self.transform(self.embedding.weight)
        return table


def _width(config: PromptConfig) -> int:
    return (config.num_layers or 0) * 2 * (config.token_dim or 0)
