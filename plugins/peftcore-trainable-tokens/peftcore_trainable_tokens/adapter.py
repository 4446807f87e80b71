"""TrainableTokensAdapter: trained rows of an embedding."""

from __future__ import annotations

from torch import nn

from peftcore.adapters.selective import TrainedTokens
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
