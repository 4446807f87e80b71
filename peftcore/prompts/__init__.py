"""Prompts: methods that change what goes into a model, not its weights.

A method's encoder (:class:`PromptEncoder`) makes virtual tokens for a batch: embeddings in front of the tokens', or
keys and values in front of every layer's own.
The rest is here, once, for every model and task: ids, masks, positions, labels, caches and generation.
"""

from peftcore.prompts.config import PromptConfig as PromptConfig
from peftcore.prompts.encoder import Batch as Batch
from peftcore.prompts.encoder import EmbeddingTable as EmbeddingTable
from peftcore.prompts.encoder import KeyValueTable as KeyValueTable
from peftcore.prompts.encoder import PromptEncoder as PromptEncoder
from peftcore.prompts.encoder import PromptTable as PromptTable
from peftcore.prompts.sizes import PromptSizes as PromptSizes
