"""PromptEmbedding: a table of virtual tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcore.prompts import EmbeddingTable, PromptSizes
from peftcore.prompts.sizes import input_embedding
from peftcore.prompts.starts import embedded, ids_of_text
from peftcore_prompt_tuning.config import PromptTuningConfig


class PromptEmbedding(EmbeddingTable):
    """Virtual tokens, each with an embedding of its own (arXiv 2104.08691).

    The parameter is ``prompt_embeddings`` ``[tokens, dim]``; for an encoder-decoder model ``[2 · tokens, dim]``.
    """

    def __init__(self, config: PromptTuningConfig, sizes: PromptSizes, model: nn.Module) -> None:
        super().__init__(config, sizes, model, table=_start(config, *self.table_shape(config), model))


def _start(config: PromptTuningConfig, rows: int, dim: int, model: nn.Module) -> Tensor:
    if config.comes_from_file or config.prompt_tuning_init == "RANDOM":
        return torch.randn(rows, dim)
    if config.prompt_tuning_init == "SAMPLE_VOCAB":
        words: Any = input_embedding(model)
        return embedded(model, torch.randint(words.num_embeddings, (rows,)))
    text, tokenizer = config.prompt_tuning_init_text or "", config.tokenizer_name_or_path or ""
    return embedded(model, ids_of_text(text, rows, tokenizer, config.tokenizer_kwargs))
