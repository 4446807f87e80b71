"""Signatures: what callers of HF PEFT's functions pass, and what trainers read of a model's."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
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


def signed_as(other: Callable[..., Any], function: functools.partial[Any]) -> functools.partial[Any]:
    """Let a function show another's parameters: trainers read from them which columns of a data set a model takes."""
    with suppress(TypeError, ValueError):  # some callables have no signature
        function.__signature__ = _signature(other)  # type: ignore[attr-defined]
    return function


#: By the functions of classes: what their methods are called with. To find that out takes longer than to adapt a layer.
_OF_METHODS: weakref.WeakKeyDictionary[Callable[..., Any], inspect.Signature] = weakref.WeakKeyDictionary()


def _signature(called: Callable[..., Any]) -> inspect.Signature:
    function = getattr(called, "__func__", None)
    if function is None:
        return inspect.signature(called)
    if function not in _OF_METHODS:
        _OF_METHODS[function] = inspect.signature(called)
    return _OF_METHODS[function]
