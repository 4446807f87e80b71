"""PeftMethod: the value by which a plugin describes a method to the core.

This is all that the core knows of a method::

    @hookimpl
    def register_peft_method() -> PeftMethod:
        return PeftMethod(name="c3a", config_cls=C3AConfig, adapter_cls=C3AAdapter, paper="2407.19342")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NoReturn

from peftcore.adapters.base import Adapter
from peftcore.catalog import name_problem
from peftcore.config import PeftConfig
from peftcore.exceptions import RegistrationError
from peftcore.peft_type import PeftType


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftMethod:
    """A fine-tuning method, checked when it is made.

    Raises:
        RegistrationError: the fields contradict themselves or each other; the message names the field.
    """

    name: str
    """The method's name in lower case, the same as its entry point's; ``PeftType`` shows it in upper case."""

    config_cls: type[PeftConfig]
    """The config, whose class line states the same name: ``class C3AConfig(LayerConfig, method="c3a")``."""

    adapter_cls: type[Adapter] | None = None
    """The adapter module put on each layer; None if ``tuner_cls`` does without."""

    encoder_cls: type | None = None
    """Makes the virtual tokens of a prompt method, a class that derives from
    :class:`peftcore.prompts.PromptEncoder`; None for methods that adapt layers."""

    tuner_cls: type | None = None
    """The tuner, a class that derives from :class:`peftcore.tuner.Tuner`; None for the core's own, which puts an
    ``adapter_cls`` on each matched layer."""

    shared_cls: type | None = None
    """Makes the shared state, what an adapter holds once per model; None if the method has none."""

    prefix: str = ""
    """What the method's parameter names start with (``"c3a_"``).
    Left empty, it is the one that the classes declare, or the name with an underscore."""

    shares_prefix: bool = False
    """Whether another method may have the same prefix; both have to say so."""

    is_mixed_compatible: bool = True
    """Whether its adapters can be active together with adapters of other methods."""

    default_targets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict, hash=False)
    """By the model's ``config.model_type``: the modules that the method adapts when the config names none, written as
    the entries of ``target_modules``. A plugin may answer for them first, by the hook ``default_target_modules``."""

    paper: str | None = None
    """Where the method was published: an arXiv id, or the address of a publication that has none."""

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            self._refuse("name", f"{problem}.")
        self._check_config()
        self._check_classes()
        self._check_default_targets()
        object.__setattr__(self, "prefix", self._checked_prefix())

    @property
    def peft_type(self) -> PeftType:
        """The method's member of :class:`PeftType`."""
        return PeftType.declare(self.name)

    def _check_config(self) -> None:
        if not _is_class(self.config_cls, PeftConfig):
            self._refuse("config_cls", f"{self.config_cls!r} is no class that derives from PeftConfig.")
        declared = getattr(self.config_cls, "method", None)
        if declared != self.name:
            config = self.config_cls.__name__
            self._refuse(
                "config_cls",
                f"{config} belongs to the method {declared!r}. "
                f"Write `class {config}(..., method={self.name!r})`, or name the method {declared!r}.",
            )

    def _check_classes(self) -> None:
        if self.adapter_cls is None and self.tuner_cls is None and self.encoder_cls is None:
            self._refuse("adapter_cls", "none of adapter_cls, encoder_cls and tuner_cls is given: nothing could train.")
        if self.adapter_cls is not None and not _is_class(self.adapter_cls, Adapter):
            self._refuse("adapter_cls", f"{self.adapter_cls!r} is no class that derives from peftcore's Adapter.")
        for field in ("encoder_cls", "tuner_cls", "shared_cls"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, type):
                self._refuse(field, f"{value!r} is no class.")

    def _check_default_targets(self) -> None:
        if not isinstance(self.default_targets, Mapping):
            self._refuse("default_targets", f"{self.default_targets!r} is no mapping from types of models to names.")
        for model_type, names in self.default_targets.items():
            is_listed = isinstance(names, Sequence) and not isinstance(names, str)
            if not (is_listed and isinstance(model_type, str) and all(isinstance(name, str) for name in names)):
                self._refuse("default_targets", f"{model_type!r} must stand for a list of names, got {names!r}.")

    def _checked_prefix(self) -> str:
        classes = (self.config_cls, self.adapter_cls, self.tuner_cls)
        declared = {cls.__name__: prefix for cls in classes if cls is not None and (prefix := _declared_prefix(cls))}
        prefix = self.prefix or next(iter(declared.values()), f"{self.name}_")
        if not isinstance(prefix, str) or not prefix.isidentifier():
            self._refuse("prefix", f"{prefix!r} can't start the name of a parameter.")
        for cls_name, other in declared.items():
            if other != prefix:
                self._refuse("prefix", f"{cls_name} declares {other!r}, but the method's prefix is {prefix!r}.")
        return prefix

    def _refuse(self, field: str, problem: str) -> NoReturn:
        raise RegistrationError(f"PeftMethod {self.name!r}, field {field}: {problem}")


def _is_class(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _declared_prefix(cls: type) -> str | None:
    declared = getattr(cls, "prefix", None)
    return declared if isinstance(declared, str) else None
