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
        rows = (config.num_virtual_tokens or 0) * (config.num_transformer_submodules or 1)
        recurrent = config.encoder_reparameterization_type is PromptEncoderReparameterizationType.LSTM
        network = (Recurrent if recurrent else Perceptron)(config, rows, sizes.token_dim)
        super().__init__(config, sizes, model, network=network)

    @classmethod
    def sizes_in_config(cls, sizes: PromptSizes) -> dict[str, int]:
        """Return a model's sizes; the hidden layers are as wide as a token if the config does not say otherwise."""
        return {**super().sizes_in_config(sizes), "encoder_hidden_size": sizes.token_dim}


class Perceptron(nn.Module):
    """Takes each virtual token through hidden layers with ReLU.

    Args:
        config: Says how wide and how many they are.
        rows: Virtual tokens.
        dim: Their width.
    """

    def __init__(self, config: PromptEncoderConfig, rows: int, dim: int) -> None:
        super().__init__()
        hidden = config.encoder_hidden_size or dim
        self.embedding = nn.Embedding(rows, dim)
        self.mlp_head = nn.Sequential(*_layers(dim, [hidden] * config.encoder_num_layers, dim))

    def forward(self) -> Tensor:
        """Return the virtual tokens, ``[rows, dim]``."""
        return self.mlp_head(self.embedding.weight)


class Recurrent(nn.Module):
    """Reads the virtual tokens in both directions, then takes each through one hidden layer with ReLU.

    Args:
        config: Says how wide and how many the LSTM's layers are, and what is dropped between them.
        rows: Virtual tokens.
        dim: Their width.
    """

    def __init__(self, config: PromptEncoderConfig, rows: int, dim: int) -> None:
        super().__init__()
        hidden, layers = config.encoder_hidden_size or dim, config.encoder_num_layers
        dropout = config.encoder_dropout if layers > 1 else 0.0  # torch warns of a dropout that is between no layers
        self.embedding = nn.Embedding(rows, dim)
        self.lstm_head = nn.LSTM(dim, hidden, layers, batch_first=True, dropout=dropout, bidirectional=True)
        self.mlp_head = nn.Sequential(*_layers(2 * hidden, [2 * hidden], dim))

    def forward(self) -> Tensor:
        """Return the virtual tokens, ``[rows, dim]``."""
        states, _ = self.lstm_head(self.embedding.weight[None])
        return self.mlp_head(states[0])


def _layers(size: int, hidden: list[int], last: int) -> Iterator[nn.Module]:
    for width in hidden:
        yield nn.Linear(size, width)
        yield nn.ReLU()
        size = width
    yield nn.Linear(size, last)
