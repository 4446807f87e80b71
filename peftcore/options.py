"""Options: how a config's fields are declared, and how values are held against their declarations."""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union

Value = TypeVar("Value")


def option(
    default: Value,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
    extension: bool = False,
    role: str | None = None,
) -> Value:
    """Declare one field of a config: its default, its meaning and its bounds.

    Args:
        default: The default; a list, set or dict is copied for each config.
        meaning: One sentence for the reader of the method's table and of the command line's help.
        at_least, above, at_most, below: Bounds of a number; ``None`` values are not checked.
        pattern: Name of the field whose patterns override this one for single layers (``r`` names ``"rank_pattern"``).
        extension: HF PEFT has no such field; it is written to files only when it differs from its default.
        role: What a family does by itself with the option; see :func:`option_with_role`.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"meaning": meaning, "bounds": bounds, "pattern": pattern, "extension": extension, "role": role}
    if isinstance(default, (list, set, dict)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def dropout_option(what: str) -> float:
    """Declare a probability with which training leaves something out; by default it leaves out nothing.

    Args:
        what: What happens to what is left out: "an entry of the input is dropped".
    """
    return option(0.0, f"Probability with which {what}.", at_least=0, below=1)


#: The role of the probability with which training drops entries of a layer's input before Δ acts on it.
INPUT_DROPOUT = "input dropout"


def input_dropout_option() -> float:
    """Declare the probability with which training drops entries of a layer's input; by default it drops none.

    An adapter that derives from :class:`~peftcore.adapters.delta.WeightDelta` needs no code of its own for it.
    """
    return option(
        0.0, "Probability with which an entry of the input is dropped.", at_least=0, below=1, role=INPUT_DROPOUT
    )


@functools.cache
def option_with_role(config_cls: Any, role: str) -> str | None:
    """Return the name of a config class's option that has a role, None if none has."""
    return next((field.name for field in dataclasses.fields(config_cls) if field.metadata.get("role") == role), None)


def layout_option() -> bool:
    """Declare ``fan_in_fan_out``, by which some of HF PEFT's configs say how a layer stores its weight."""
    return option(False, "Ignored, since a layer's own class says how it stores its weight.")


_BOUNDS: dict[str, Callable[[float, float], bool]] = {
    "at_least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "at_most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}


def problem_with(value: Any, field: dataclasses.Field[Any], hint: Any) -> str | None:
    """Say what is wrong with a field's value, as the end of a sentence, or return None.

    Args:
        value: The value.
        field: The field, whose bounds hold for numbers.
        hint: Its annotation.
    """
    if not fits(value, hint):
        return f"must be {spell(hint)}, got {value!r} ({type(value).__name__})"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    for bound, limit in field.metadata.get("bounds", {}).items():
        if limit is not None and not _BOUNDS[bound](value, limit):
            return f"must be {bound.replace('_', ' ')} {limit}, got {value!r}"
    return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotation's type; an int counts as a float, a bool as neither."""
    if type(hint) is type:  # as most annotations are, and those of the entries of long lists
        return _fits_class(value, hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is tuple:
        return _fits_tuple(value, parts)
    if origin in (list, set):
        # In one go where all are just of that class: such lists may be long.
        return isinstance(value, origin) and (
            {*map(type, value)} <= {parts[0]} or all(fits(item, parts[0]) for item in value)
        )
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    return isinstance(value, hint)


def _fits_class(value: Any, wanted: type) -> bool:
    if wanted is float or wanted is int:
        numbers = (int, float) if wanted is float else int
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _fits_tuple(value: Any, parts: tuple[Any, ...]) -> bool:
    if not isinstance(value, (tuple, list)):
        return False
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(fits(item, parts[0]) for item in value)
    return len(value) == len(parts) and all(fits(item, part) for item, part in zip(value, parts, strict=True))


def spell(hint: Any) -> str:
    """Write an annotation as a person would."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spell(part) for part in parts)
    if origin is Literal:
        return " or ".join(repr(part) for part in parts)
    if hint is type(None):
        return "None"
    if parts:
        return f"{origin.__name__} of {', '.join(spell(part) for part in parts)}"
    return getattr(hint, "__name__", str(hint))
