"""Keywords that callers of HF PEFT's functions pass, and that ask for nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def refuse_arguments(function: str, given: Mapping[str, Any], harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse keywords that HF PEFT's functions take and ours don't, unless they ask for nothing.

    Args:
        function: Its name, for the message.
        given: The keywords.
        harmless: By keyword, the values that ask for nothing (None always does).

    Raises:
        TypeError: One asks for something.
    """
    for name, value in given.items():
        if value is not None and value not in harmless.get(name, ()):
            raise TypeError(f"{function}() does not take {name}={value!r}.")
