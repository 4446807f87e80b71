"""Configs: what a user asks of a method, checked when it is made, and carried as JSON.

A method's config is a class that lists its options and their meaning; everything else is inherited::

    class C3AConfig(LayerConfig, method="c3a"):
        block_size: int = option(256, "Side of the circulant blocks.", at_least=1)

The class line turns the class into a keyword-only dataclass, so no decorator is needed.
Types are checked against the annotations and bounds against :func:`option`, when a config is made and when it is used.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import importlib
import json
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self, dataclass_transform

from peftcore.catalog import catalog
from peftcore.exceptions import ConfigError
from peftcore.json_files import CONFIG_NAME as CONFIG_NAME
from peftcore.json_files import read_json_object as read_json_object
from peftcore.options import dropout_option as dropout_option
from peftcore.options import input_dropout_option as input_dropout_option
from peftcore.options import layout_option as layout_option
from peftcore.options import option as option
from peftcore.options import problem_with
from peftcore.peft_type import PeftType, TaskType
from peftcore.views import View, Viewed


@dataclass_transform(kw_only_default=True, field_specifiers=(option, dataclasses.field))
@dataclasses.dataclass(kw_only=True, repr=False)
class PeftConfig(Viewed):
    """What every adapter's config holds, whatever its method.

    A subclass states its method in its class line (``class MyConfig(LayerConfig, method="mine")``); a subclass without
    one is a common base for several methods.

    Raises:
        ConfigError: A value has the wrong type or lies outside its bounds; the message names class, field and value.
    """

    #: The method's name, as in its entry point; None for a common base.
    method: ClassVar[str | None] = None
    #: Fields that other writers put into this method's files, and the value that asks for nothing.
    foreign_defaults: ClassVar[Mapping[str, Any]] = {}
    #: Finds the config class of a method; set by the registry, which stands below this room.
    find_class: ClassVar[Callable[[str], type[PeftConfig]] | None] = None

    task_type: TaskType | None = option(None, "What the model is for; decides the class of the PeftModel.")
    peft_type: PeftType | None = option(None, "The method; set by the config's class.")
    auto_mapping: dict[str, Any] | None = option(
        None, "Class and library of the base model, for models without a task."
    )
    peft_version: str | None = option(None, "Version of the library that wrote the file.", extension=True)
    base_model_name_or_path: str | None = option(None, "Where the base model came from.")
    revision: str | None = option(None, "Revision of the base model.")
    inference_mode: bool = option(False, "Whether the adapter is frozen when it is put into a model.")

    def __init_subclass__(cls, method: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(kw_only=True, repr=False)(cls)
        if method is not None:
            cls.method = method
            PeftType.declare(method)

    def __post_init__(self) -> None:
        self._settle_types()
        self.validate()

    def _settle_types(self) -> None:
        if isinstance(self.task_type, str) and not isinstance(self.task_type, TaskType):
            if self.task_type not in TaskType.__members__:
                known = ", ".join(TaskType.__members__)
                raise ConfigError(
                    f"{type(self).__name__}.task_type: {self.task_type!r} is no task type; known: {known}."
                )
            self.task_type = TaskType[self.task_type]
        if self.method is None:
            self.peft_type = PeftType(self.peft_type) if isinstance(self.peft_type, str) else self.peft_type
            return
        declared = PeftType.declare(self.method)
        if self.peft_type is not None and str(self.peft_type) != str(declared):
            raise ConfigError(
                f"{type(self).__name__}.peft_type: this class is for {declared!s}, got {self.peft_type!s}."
            )
        self.peft_type = declared

    # ------------------------------------------------------------------------------------------ validation

    def validate(self) -> None:
        """Check every field's type and bounds; subclasses add what relates one field to another.

        Raises:
            ConfigError: See the class.
        """
        hints = _type_hints(type(self))  # type: ignore[arg-type]  # a class has a hash, its instances don't
        sound = _sound_defaults(type(self))  # type: ignore[arg-type]  # as above
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in sound and value is field.default:
                continue
            problem = problem_with(value, field, hints[field.name])
            if problem is not None:
                self.refuse(field.name, problem)

    def refuse(self, field: str, problem: str) -> typing.NoReturn:
        """Raise the error that names this config's class and field.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{type(self).__name__}.{field}: {problem}.")

    # -------------------------------------------------------------------------------------- what is seen of it

    def asked(self) -> dict[str, Any]:
        """Return the values that differ from their defaults, but for the method, which the class says."""
        values = {field.name: (getattr(self, field.name), _default_of(field)) for field in dataclasses.fields(self)}
        if self.method is not None:
            del values["peft_type"]
        return {name: value for name, (value, default) in values.items() if value != default}

    def __repr__(self) -> str:
        """Return the call that makes this config."""
        asked = ", ".join(f"{name}={_written(value)}" for name, value in self.asked().items())
        return f"{type(self).__name__}({asked})"

    def view(self) -> View:
        """Return the options that differ from their defaults, with their meaning."""
        meaning = {field.name: field.metadata.get("meaning", "") for field in dataclasses.fields(self)}
        rows = [(name, _written(value), meaning[name]) for name, value in self.asked().items()]
        title = f"{type(self).__name__} ({self.method or 'no method'})"
        rest = f"{len(meaning) - len(rows)} others have their defaults."
        return View(title, ("option", "value", "meaning"), rows, [rest])

    # ------------------------------------------------------------------------------------------------ JSON

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values: sets become sorted lists, enumerations strings."""
        return {name: _plain(value) for name, value in self._written_fields()}

    def _written_fields(self) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (field.metadata.get("extension") and value == _default_of(field)):
                yield field.name, value

    def to_json_string(self) -> str:
        """Return the file's text: two spaces of indentation, sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``adapter_config.json`` into a directory, which is made if need be."""
        path = Path(save_directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_NAME).write_text(self.to_json_string(), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from a file's values; called on a base class, ``peft_type`` decides which.

        A field that this version does not know is ignored where it holds its empty default.
        A method may be called by the name that it had when the file was written.

        Raises:
            ConfigError: A wrong value, an unknown field that asks for something, or no (or another) ``peft_type``.
            UnknownMethodError: No installed plugin provides the method.
        """
        if isinstance(stated := values.get("peft_type"), str):
            values = {**values, "peft_type": catalog.current_name(stated).upper()}
        target = cls._class_for(values)
        known = {field.name for field in dataclasses.fields(target)}
        unknown = {name: value for name, value in values.items() if name not in known}
        asking = sorted(name for name, value in unknown.items() if not target._asks_nothing(name, value))
        if asking:
            listed = ", ".join(f"{name}={unknown[name]!r}" for name in asking)
            raise ConfigError(
                f"{target.__name__} does not know {listed}. "
                f"Update the plugin of method {target.method!r}, or take out what the adapter does not need."
            )
        return target(**{name: copy.deepcopy(value) for name, value in values.items() if name in known})  # type: ignore[return-value]

    @classmethod
    def _class_for(cls, values: Mapping[str, Any]) -> type[PeftConfig]:
        stated = values.get("peft_type")
        if cls.method is not None:
            return cls
        if stated is None:
            raise ConfigError(f"{cls.__name__}: the config names no peft_type, so its method is unknown.")
        if PeftConfig.find_class is None:
            importlib.import_module("peftcore.registry")
        assert PeftConfig.find_class is not None, "the registry sets it when it is imported"
        return PeftConfig.find_class(str(stated))

    @classmethod
    def _asks_nothing(cls, name: str, value: Any) -> bool:
        empty = value is None or value is False or (isinstance(value, (str, list, dict)) and not value)
        return empty or (name in cls.foreign_defaults and value == cls.foreign_defaults[name])

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a config from a JSON file.

        Raises:
            CheckpointError: The file is missing or no JSON object.
            ConfigError: As :meth:`from_dict`.
        """
        return cls.from_dict(read_json_object(Path(path)))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Read ``adapter_config.json`` from an adapter directory (or the hub); keywords override its fields."""
        directory = Path(pretrained_model_name_or_path) / (subfolder or "")
        return cls.from_dict({**read_json_object(directory / CONFIG_NAME), **kwargs})


class LayerConfig(PeftConfig):
    """What every method that adapts layers of a model can be asked.

    See :mod:`peftcore.targets` for how names, patterns and exclusions are read.
    """

    target_modules: str | set[str] | None = option(
        None, "Modules to adapt: names or dotted suffixes, wildcards, one regular expression, or 'all-linear'."
    )
    exclude_modules: str | set[str] | None = option(
        None, "Modules to leave out, written as target_modules.", extension=True
    )
    layers_to_transform: int | list[int] | None = option(
        None, "Indices of the layers to adapt; all if None.", extension=True
    )
    layers_pattern: str | list[str] | None = option(
        None, "Name of the list of layers that the indices count.", extension=True
    )
    modules_to_save: list[str] | None = option(
        None, "Modules to train whole and to save with the adapter.", extension=True
    )
    target_parameters: list[str] | None = option(
        None, "Parameters to adapt that belong to no supported layer, such as stacked experts.", extension=True
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = option(
        None, "Rows of the input embedding (or of the embeddings named) to train.", extension=True
    )
    bias: str = option(
        "none", "Which biases train: 'none', 'all', or '<method>_only' for the adapted layers.", extension=True
    )
    ensure_weight_tying: bool = option(False, "Let layers that share one weight share one adapter.", extension=True)
    canonical_modules: dict[str, Any] | None = option(
        None,
        "Names of the parts of fused modules, e.g. {'qkv_proj': {'q_proj': 4, 'k_proj': 1, 'v_proj': 1}}.",
        extension=True,
    )

    def _settle_types(self) -> None:
        super()._settle_types()
        for name in _name_fields(type(self)):  # type: ignore[arg-type]  # as below
            value = getattr(self, name)
            if isinstance(value, (list, tuple, frozenset)):
                setattr(self, name, _set_of_names(value, self.refuse, name))

    def validate(self) -> None:
        """Check the fields, and that they go together."""
        super().validate()
        allowed = ["none", "all", f"{self.method}_only"]
        if self.bias not in allowed:
            self.refuse("bias", f"must be one of {', '.join(allowed)}, got {self.bias!r}")
        self._validate_patterns()
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            self.refuse(
                "layers_to_transform",
                "can't be combined with a regular expression in target_modules; put the indices into the expression",
            )
        if self.layers_pattern and self.layers_to_transform is None:
            self.refuse("layers_pattern", "says where to count layers, so it needs layers_to_transform")

    def _validate_patterns(self) -> None:
        hints = _type_hints(type(self))  # type: ignore[arg-type]  # as above
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name, pattern in _pattern_fields(type(self)):  # type: ignore[arg-type]  # as above
            for key, value in (getattr(self, pattern) or {}).items():
                problem = problem_with(value, fields[name], hints[name])
                if problem is not None:
                    self.refuse(pattern, f"{key!r} {problem}")
                try:
                    _path_end(key)
                except re.error as error:
                    self.refuse(pattern, f"{key!r} is no regular expression: {error}")

    def for_layer(self, path: str) -> Self:
        """Return the config as it holds for one layer, with ``rank_pattern`` and its like applied.

        A pattern is a regular expression that must match the path's end, from a dot or from the start; the first wins.

        Args:
            path: The layer's dotted path in the model.
        """
        changed: dict[str, Any] = {}
        for name, patterns in self._patterns():
            hit = next((key for key in patterns if _ends_with(key, path)), None)
            if hit is not None:
                changed[name] = patterns[hit]
        return self.unchecked_copy(**changed) if changed else self

    def unchecked_copy(self, **values: Any) -> Self:
        """Return a copy with other values, which may also be what only a config for one layer has."""
        other = copy.copy(self)
        other.__dict__.update(values)
        return other

    def pattern_of(self, field: str) -> str | None:
        """Return the name of the field that has other values of a field for single layers, None if there is none."""
        return dict(_pattern_fields(type(self))).get(field)  # type: ignore[arg-type]  # as above

    def _patterns(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, pattern in _pattern_fields(type(self)):  # type: ignore[arg-type]  # as above
            patterns = getattr(self, pattern)
            if patterns:
                yield name, patterns


@functools.cache
def _type_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _sound_defaults(cls: Any) -> frozenset[str]:
    """Return the fields whose own default is what they declare; the others have to be given."""
    hints, fixed = _type_hints(cls), (f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING)
    return frozenset(field.name for field in fixed if problem_with(field.default, field, hints[field.name]) is None)


@functools.cache
def _name_fields(cls: Any) -> tuple[str, ...]:
    """Return the fields that hold sets of names; a list, as JSON has them, does as well."""
    return tuple(name for name, hint in _type_hints(cls).items() if set[str] in typing.get_args(hint))


@functools.cache
def _pattern_fields(cls: Any) -> tuple[tuple[str, str], ...]:
    fields = dataclasses.fields(cls)
    return tuple((f.name, f.metadata["pattern"]) for f in fields if f.metadata.get("pattern"))


@functools.cache
def _path_end(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?(?:{pattern})")


def _ends_with(pattern: str, path: str) -> bool:
    return _path_end(pattern).fullmatch(path) is not None


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _set_of_names(names: Any, refuse: Callable[[str, str], typing.NoReturn], field: str) -> set[str]:
    for name in names:
        if not isinstance(name, str):
            refuse(field, f"must hold names, got {name!r} ({type(name).__name__})")
    return set(names)


def _written(value: Any) -> str:
    return f"{{{', '.join(sorted(map(repr, value)))}}}" if isinstance(value, set) and value else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return str(value) if isinstance(value, str) else value
