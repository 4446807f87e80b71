"""CartridgeConfig: what a cartridge can be asked."""

from __future__ import annotations

from peftcore.config import option
from peftcore.prompts import PromptConfig


class CartridgeConfig(PromptConfig, method="cartridge"):
    """Cartridge: the keys and values of every layer, trained themselves (arXiv 2506.06266).

    Names and defaults are those of HF PEFT.

    Raises:
        ConfigError: A value has the wrong type, lies outside its bounds or does not go with another.
    """

    num_frozen_tokens: int = option(
        1, "How many of the first virtual tokens never change; attention leans on the very first one.", at_least=0
    )

    def validate(self) -> None:
        """Check the fields, and that no more tokens are frozen than there are."""
        super().validate()
        tokens = self.num_virtual_tokens or 0
        if self.num_frozen_tokens > tokens:
            self.refuse("num_frozen_tokens", f"is {self.num_frozen_tokens}, and there are {tokens} virtual tokens")
