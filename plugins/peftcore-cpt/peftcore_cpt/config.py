"""CPTConfig: what context-aware prompt tuning can be asked."""

from __future__ import annotations

from typing import Literal

from peftcore.config import option
from peftcore.peft_type import TaskType
from peftcore.prompts import PromptConfig


class CPTConfig(PromptConfig, method="cpt"):
    """Context-aware prompt tuning: a context of examples whose embeddings train (arXiv 2410.17222).

    A token's type says what it is in its example: 1 the format in front of the input, 2 the input, 3 the format in
    front of the label, 4 the label; in the next example 5 to 8, and so on; 0 for what is none of these.
    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    cpt_token_ids: list[int] | None = option(None, "The context's token ids; have to be given.")
    cpt_mask: list[int] | None = option(None, "1 for each token that is used, 0 for one that is left out; all if None.")
    cpt_tokens_type_mask: list[int] | None = option(None, "Each token's type; 1, format, for all if None.")
    opt_weighted_loss_type: Literal["none", "decay"] = option(
        "none", "'decay' weighs an example's label less, the farther in front it stands."
    )
    opt_loss_decay_factor: float = option(1.0, "Weight of a label relative to the next one, for 'decay'.", above=0)
    opt_projection_epsilon: float = option(
        0.1, "How far an input token's embedding may move, in units of √(dim / 2048).", at_least=0
    )
    opt_projection_format_epsilon: float = option(0.1, "The same for a token of the format.", at_least=0)
    tokenizer_name_or_path: str | None = option(None, "The tokenizer that the ids are from; kept with them.")

    def _settle_types(self) -> None:
        super()._settle_types()
        if isinstance(self.cpt_token_ids, list):
            number = len(self.cpt_token_ids)
            filled = {"num_virtual_tokens": number, "cpt_mask": [1] * number, "cpt_tokens_type_mask": [1] * number}
            for name in (name for name in filled if getattr(self, name) is None):
                setattr(self, name, filled[name])

    def validate(self) -> None:
        """Check the fields, and that each token of the context has a mask and a type."""
        if self.task_type != TaskType.CAUSAL_LM:
            self.refuse("task_type", f"must be CAUSAL_LM, got {self.task_type!s}")
        self.require("cpt_token_ids")
        super().validate()
        number = len(self.cpt_token_ids or ())
        if self.num_virtual_tokens != number:
            self.refuse("num_virtual_tokens", f"is {self.num_virtual_tokens} for {number} cpt_token_ids; leave it out")
        for name in ("cpt_mask", "cpt_tokens_type_mask"):
            values = getattr(self, name)
            if len(values) != number or min(values) < 0:
                self.refuse(name, f"must have {number} numbers from 0 up, one for each of cpt_token_ids, got {values}")
        if set(self.cpt_mask or ()) not in ({1}, {0, 1}):
            self.refuse("cpt_mask", "must hold 1 for tokens that are used, some of them, and 0 for others")
