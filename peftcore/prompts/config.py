"""PromptConfig: what every prompt method can be asked."""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any, ClassVar, Literal

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

    def _settle_types(self) -> None:
        super()._settle_types()
        for name, members in _enumerations(type(self)):  # type: ignore[arg-type]  # a class has a hash
            if isinstance(given := getattr(self, name), str) and given in members:
                setattr(self, name, members[given])

    def validate(self) -> None:
        """Check the fields, and that the number of virtual tokens is given."""
        super().validate()
        self.require("num_virtual_tokens")

    def require(self, *names: str, because: str = "") -> None:
        """Refuse options that are not given, or empty.

        Args:
            *names: The options.
            because: How the sentence "… has to be given" ends.

        Raises:
            ConfigError: One is None or empty.
        """
        for name in names:
            if getattr(self, name) in (None, "", []):
                self.refuse(name, f"has to be given{because}")


@functools.cache
def _enumerations(config_cls: Any) -> tuple[tuple[str, Any], ...]:
    """Return the options whose default is a member of an enumeration, each with all members by name."""
    defaults = ((field.name, field.default) for field in dataclasses.fields(config_cls))
    return tuple((name, type(default).__members__) for name, default in defaults if isinstance(default, enum.Enum))
