"""AdaptionPromptConfig: what an adaption prompt can be asked."""

from __future__ import annotations

from typing import Any

from peftcore.config import LayerConfig, option

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class AdaptionPromptConfig(LayerConfig, method="adaption_prompt"):
    """Adaption prompt, LLaMA-Adapter: tokens that the last layers attend to, through a gate (arXiv 2303.16199).

    Names and defaults are those of HF PEFT; those of the projections are peftcore's.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    adapter_len: int | None = option(None, "Number of tokens of each layer; has to be given.", at_least=1)
    adapter_layers: int | None = option(None, "How many of the last layers get some; has to be given.", at_least=1)
    q_proj: str | None = option(
        None, "The module inside an attention that makes queries; found by the usual names if None.", extension=True
    )
    k_proj: str | None = option(None, "The module that makes keys.", extension=True)
    v_proj: str | None = option(
        None, "The module that makes values; one name for all three means parts of its outputs in turn.", extension=True
    )
    o_proj: str | None = option(
        None, "The module that takes what was attended to; None with the others named means none.", extension=True
    )
    head_dim: int | None = option(
        None, "Width of a head; the attention's head_dim if None.", extension=True, at_least=1
    )

    def _settle_types(self) -> None:
        # As in HF PEFT, one name is a name; expressions are recognised by their signs.
        if isinstance(self.target_modules, str) and self.target_modules.replace(".", "").isidentifier():
            self.target_modules = {self.target_modules}
        super()._settle_types()

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        for name in ("adapter_len", "adapter_layers"):
            if getattr(self, name) is None:
                self.refuse(name, "has to be given")
        named = [name for name in (*_PROJECTIONS, "o_proj") if getattr(self, name) is not None]
        missing = [name for name in _PROJECTIONS if name not in named]
        if named and missing:
            self.refuse(missing[0], f"has to be named too, since {named[0]} is")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; a single target as a name, the only form that HF PEFT reads."""
        values = super().to_dict()
        targets = values["target_modules"]
        return {**values, "target_modules": targets[0]} if isinstance(targets, list) and len(targets) == 1 else values
