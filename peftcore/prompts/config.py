"""PromptConfig: what every prompt method can be asked."""

from __future__ import annotations

from typing import ClassVar, Literal

from peftcore.config import PeftConfig, option


class PromptConfig(PeftConfig):
    """What every method that puts virtual tokens into a model can be asked.

    The sizes are read from the model where they are None, and written to files.
    """

    #: Of the config of an adapter that is being loaded: a file brings what would be made at the start.
    comes_from_file: ClassVar[bool] = False

    num_virtual_tokens: int | None = option(None, "Number of virtual tokens; has to be given.", at_least=1)
    token_dim: int | None = option(None, "Width of a virtual token; the model's if None.", at_least=1)
    num_transformer_submodules: int | None = option(
        None, "2 for an encoder-decoder model, 1 for others; the model's if None.", at_least=1, at_most=2
    )
    num_attention_heads: int | None = option(None, "Heads of the keys and values; the model's if None.", at_least=1)
    num_layers: int | None = option(None, "Layers of the model; the model's if None.", at_least=1)
    modules_to_save: list[str] | None = option(None, "Modules to train whole and to save with the adapter.")
    injected_into: Literal["encoder", "decoder", "both"] = option(
        "encoder",
        "Which part of an encoder-decoder model gets virtual embeddings; keys and values always go to the decoder.",
        extension=True,
    )

    def validate(self) -> None:
        """Check the fields, and that the number of virtual tokens is given."""
        super().validate()
        if self.num_virtual_tokens is None:
            self.refuse("num_virtual_tokens", "has to be given")
