"""PTuningEncoder: a network that makes virtual tokens."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from peftcore.prompts import EmbeddingTable, PromptSizes
from peftcore_p_tuning.config import PromptEncoderConfig, PromptEncoderReparameterizationType


class PTuningEncoder(EmbeddingTable):
    """Virtual tokens made from trained embeddings by an MLP or an LSTM (arXiv 2103.10385).

    The file has the finished table, ``prompt_embeddings`` ``[tokens, dim]``, and the network that training needs to go
    on; for an encoder-decoder model there are ``2 · tokens``.
    """

    def __init__(self, config: PromptEncoderConfig, sizes: PromptSizes, model: nn.Module) -> None:
        super().__init__(config, sizes, model, network=Network(config, *self.table_shape(config)))

    @classmethod
    def sizes_in_config(cls, sizes: PromptSizes) -> dict[str, int]:
        """Return a model's sizes; the hidden layers are as wide as a token if the config does not say otherwise."""
        return {**super().sizes_in_config(sizes), "encoder_hidden_size": sizes.token_dim}


class Network(nn.Module):
    """Takes an embedding per virtual token through hidden layers with ReLU, and first through an LSTM if that is asked.

    The LSTM reads in both directions; behind it there is one hidden layer, as wide as its states.

    Args:
        config: Says how wide and how many the layers are, and what is dropped between those of the LSTM.
        rows: Virtual tokens.
        dim: Their width.
    """

    def __init__(self, config: PromptEncoderConfig, rows: int, dim: int) -> None:
        super().__init__()
        self.lstm_head: nn.LSTM | None = None
        width, layers = config.encoder_hidden_size or dim, config.encoder_num_layers
        self.embedding = nn.Embedding(rows, dim)
        first, hidden = dim, [width] * layers
        if config.encoder_reparameterization_type is PromptEncoderReparameterizationType.LSTM:
            dropout = config.encoder_dropout if layers > 1 else 0.0  # torch warns of one that is between no layers
            self.lstm_head = nn.LSTM(dim, width, layers, batch_first=True, dropout=dropout, bidirectional=True)
            first, hidden = 2 * width, [2 * width]
        self.mlp_head = nn.Sequential(*_layers(first, hidden, dim))

    def forward(self) -> Tensor:
        """Return the virtual tokens, ``[rows, dim]``."""
        tokens = self.embedding.weight
        return self.mlp_head(tokens if self.lstm_head is None else self.lstm_head(tokens[None])[0][0])


def _layers(size: int, hidden: list[int], last: int) -> Iterator[nn.Module]:
    for width in hidden:
        yield nn.Linear(size, width)
        yield nn.ReLU()
        size = width
    yield nn.Linear(size, last)
