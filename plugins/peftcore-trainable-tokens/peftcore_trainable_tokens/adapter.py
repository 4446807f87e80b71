"""TrainableTokensAdapter: trained rows of an embedding."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftcore.adapters.selective import TiedTokens, TrainedTokens
from peftcore.base_layers import BaseLayer
from peftcore_trainable_tokens.config import TrainableTokensConfig


class TrainableTokensAdapter(TrainedTokens):
    """Trained rows of one embedding, ``trainable_tokens_delta`` ``[tokens, dim]``, in the place of its own."""

    def __init__(self, base: BaseLayer, config: TrainableTokensConfig, shared: None = None) -> None:
        if not config.token_indices:
            config.refuse("token_indices", "names no token to train")
        super().__init__(base, config.token_indices)
        if not config.init_weights:
            nn.init.normal_(self.trainable_tokens_delta)

    def tied(self, base: BaseLayer, config: Any) -> TiedTrainableTokens:
        """Return the rows as they act on another layer that stores the same weight."""
        return TiedTrainableTokens(base, self)


class TiedTrainableTokens(TiedTokens):
    """The rows of another layer's adapter on a layer that stores the same weight; files name them there too."""

    def saved_module(self) -> nn.Module:
        """Return a module that holds the rows, as a view, so loading reaches them."""
        saved: Any = nn.Module()
        saved.trainable_tokens_delta = nn.Parameter(self.source.trainable_tokens_delta.detach())
        return saved
