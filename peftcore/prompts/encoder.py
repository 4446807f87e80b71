"""PromptEncoder: the family of methods that change what goes into a model, not its weights.

The author writes :meth:`PromptEncoder.embeddings`, virtual tokens in front of the input embeddings, or
:meth:`PromptEncoder.key_values`, a prefix in every layer's cache. The core does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftcore.exceptions import CheckpointError, TaskError
from peftcore.prompts.config import PromptConfig
from peftcore.prompts.layout import Layout
from peftcore.prompts.sizes import PromptSizes


@dataclass(frozen=True)
class Batch:
    """What a prompt is made for.

    Attributes:
        rows: How many rows.
        arguments: What the method has declared and the caller has given, a tensor's rows those of this batch.
    """

    rows: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def argument(self, name: str, method: str) -> Any:
        """Return an argument that the method needs.

        Raises:
            TaskError: The caller has not given it.
        """
        if self.arguments.get(name) is None:
            raise TaskError(f"{method} needs {name}= in each call of the model, one per row of the batch.")
        return self.arguments[name]


class PromptEncoder(nn.Module):
    """What a prompt method trains, and what it makes of that for a batch.

    ``state_dict()`` is what the file holds; HF PEFT's has one tensor, ``prompt_embeddings``.

    Args:
        config: The method's config, its sizes filled in.
        sizes: The model's.
        model: The user's model, to start from; it is not kept.
    """

    #: Keywords that the method takes from each call of the model.
    call_arguments: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: PromptConfig, sizes: PromptSizes, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.sizes = sizes

    @classmethod
    def makes_prefix(cls) -> bool:
        """Whether the method gives keys and values."""
        return cls.key_values is not PromptEncoder.key_values

    @classmethod
    def sizes_in_config(cls, sizes: PromptSizes) -> dict[str, int]:
        """Return a model's sizes by the names that a config has for them; a prefix's are those of keys and values."""
        prefix = cls.makes_prefix()
        heads = sizes.num_key_value_heads if prefix else sizes.num_attention_heads
        return {
            "token_dim": heads * sizes.head_dim if prefix else sizes.token_dim,
            "num_attention_heads": heads,
            "num_layers": sizes.num_layers,
            "num_transformer_submodules": 2 if sizes.is_encoder_decoder else 1,
        }

    @classmethod
    def table_shape(cls, config: PromptConfig) -> tuple[int, int]:
        """Return the shape of a table of all virtual tokens, ``[tokens, dim]`` or that of their keys and values.

        For an encoder-decoder model there are ``2 · tokens`` embeddings, or as ``num_transformer_submodules`` says.
        """
        tokens, dim = config.num_virtual_tokens or 0, config.token_dim or 0
        if cls.makes_prefix():
            return tokens, (config.num_layers or 0) * 2 * dim
        return tokens * (config.num_transformer_submodules or 1), dim

    def embeddings(self, batch: Batch) -> Tensor | None:
        """Return virtual tokens that go in front of the input embeddings, ``[tokens, dim]`` or ``[rows, tokens, dim]``.

        Of an encoder-decoder model into both of whose parts they go, the decoder's follow the encoder's.
        """
        return None

    def key_values(self, batch: Batch) -> Tensor | None:
        """Return keys and values that go in front of every layer's own.

        They are ``[tokens, layers · 2 · heads · head_dim]``, or with ``[rows]`` in front; in each layer first the keys.
        """
        return None

    def finish(self, output: Any, arguments: Mapping[str, Any], layout: Layout | None) -> Any:
        """Return the model's output as the method wants it, a loss of its own, say; by default as it is.

        Args:
            output: The model's.
            arguments: What the model was called with, virtual tokens included, and what the method has declared.
            layout: Where virtual embeddings stand among the tokens; None if there are none in this call.
        """
        return output

    # ----------------------------------------------------------------------------------------------- files

    def saved_module(self) -> nn.Module:
        """Return the module whose state the file holds: this one, unless the file has it in another form."""
        return self

    def before_load(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of a file that :meth:`saved_module` holds in another form; everything fits by then.

        Args:
            state: The tensors by the file's names; some may be missing, or of another shape.
        """

    def derived_state(self) -> dict[str, Tensor]:
        """Return what the file holds beside the module's own state, computed from it, by the names there."""
        return {}

    def settle_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a file's tensors without those that :meth:`derived_state` computes; get ready for what is left.

        Args:
            state: The tensors by the file's names.

        Raises:
            CheckpointError: The adapter can't work with them.
        """
        derived = self.derived_state()
        return {key: value for key, value in state.items() if key not in derived}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the virtual tokens are made."""
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())


#: What the names of a network's tensors start with.
_NETWORK = "prompt_encoder."


class PromptTable(PromptEncoder):
    """Virtual tokens that are rows of one table, ``prompt_embeddings``, or made by a network that trains instead of it.

    HF PEFT's files hold the table alone, which is enough for using it, and from which training can't go on if a network
    has made it. Files written here hold the network too, under ``prompt_encoder.``, where HF PEFT does not look.

    Args:
        config, sizes, model: See :class:`PromptEncoder`.
        network: Called without arguments, makes the table; None if the table itself trains.
        table: What the table starts with if there is no network, ``[tokens, width]``.
    """

    def __init__(
        self,
        config: PromptConfig,
        sizes: PromptSizes,
        model: nn.Module,
        *,
        network: nn.Module | None = None,
        table: Tensor | None = None,
    ) -> None:
        super().__init__(config, sizes, model)
        if table is not None:
            self.prompt_embeddings = nn.Parameter(table)
        self.prompt_encoder = network

    prompt_encoder: nn.Module | None
    #: Whether a file has brought the table of an adapter whose network it does not hold.
    is_finished: bool = False

    def table(self) -> Tensor:
        """Return the virtual tokens, ``[tokens, width]``."""
        return self.prompt_embeddings if self.prompt_encoder is None else self.prompt_encoder()

    @torch.no_grad()
    def derived_state(self) -> dict[str, Tensor]:
        """Return the table, if a network makes it."""
        if self.prompt_encoder is None:
            return {}
        with as_in_use(self.prompt_encoder):
            return {"prompt_embeddings": self.prompt_encoder()}

    def settle_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take the table alone from a file that holds no network, if the adapter is not going to train.

        Raises:
            CheckpointError: It is going to train, or the table has another shape.
        """
        table, network = state.get("prompt_embeddings"), self.prompt_encoder
        if network is None and self.is_finished:
            return {key: value for key, value in state.items() if not key.startswith(_NETWORK)}
        if network is None or table is None or any(key.startswith(_NETWORK) for key in state):
            return super().settle_state(state)
        if not self.config.inference_mode:
            raise CheckpointError(
                "The file holds the finished virtual tokens and not the network that made them, as HF PEFT writes it: "
                "training can't go on from there. Load it with is_trainable=False, to use it."
            )
        own, like = self.derived_state()["prompt_embeddings"], next(network.parameters())
        if table.shape != own.shape:
            raise CheckpointError(
                f"prompt_embeddings is {list(table.shape)} in the file and {list(own.shape)} in the adapter: it was "
                "written with another config, or for another model."
            )
        self.prompt_embeddings = nn.Parameter(own.to(like.dtype), requires_grad=like.requires_grad)
        self.prompt_encoder, self.is_finished = None, True
        return state


@contextmanager
def as_in_use(network: nn.Module) -> Iterator[None]:
    """Let a network compute in this block as it does in use: without dropout, and in its own dtype."""
    modes = [(module, module.training) for module in network.modules()]
    device = next(network.parameters()).device.type
    try:
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


class EmbeddingTable(PromptTable):
    """Virtual tokens from a table ``[tokens, dim]``, the same for all rows, in front of the input embeddings."""

    def embeddings(self, batch: Batch) -> Tensor:
        """Return the table."""
        return self.table()


class KeyValueTable(PromptTable):
    """A prefix from a table ``[tokens, layers · 2 · heads · head_dim]``, the same for all rows, in every layer's cache.

    In files for encoder-decoder models, decoder layer l has the keys and values at place 2 · l mod layers, and the
    others stand idle: so HF PEFT has it. With ``num_transformer_submodules=1``, which HF PEFT can't run there, each
    layer has its own.
    """

    def key_values(self, batch: Batch) -> Tensor:
        """Return the table."""
        table = self.table()
        if not self.sizes.is_encoder_decoder or self.config.num_transformer_submodules == 1:
            return table
        layers = self.sizes.num_layers
        places = torch.arange(layers, device=table.device) * 2 % layers
        return table.reshape(len(table), layers, -1)[:, places].flatten(1)
