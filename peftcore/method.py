"""PeftMethod: the value by which a plugin describes a method to the core.

This is all that the core knows of a method::

    @hookimpl
    def register_peft_method() -> PeftMethod:
        return PeftMethod(config_cls=C3AConfig, adapter_cls=C3AAdapter, paper="2407.19342")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from peftcore.adapters.base import Adapter
from peftcore.catalog import name_problem
from peftcore.config import PeftConfig
from peftcore.exceptions import RegistrationError
from peftcore.peft_type import PeftType
from peftcore.targets.usual import ATTENTION_PROJECTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftMethod:
    """A fine-tuning method, checked when it is made.

    Raises:
        RegistrationError: the fields contradict themselves or each other; the message names the field.
    """

    config_cls: type[PeftConfig]
    """The config, whose class line states the method's name: ``class C3AConfig(LayerConfig, method="c3a")``."""

    name: str = ""
    """The method's name in lower case, the same as its entry point's; ``PeftType`` shows it in upper case.
    Left empty, it is the one that the config states."""

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

    default_targets: Mapping[str, Sequence[str]] = dataclasses.field(default=None, hash=False)  # type: ignore[arg-type]
    """By the model's ``config.model_type``: the modules that the method adapts when the config names none, written as
    the entries of ``target_modules``. Left out, they are attention's projections in the usual models
    (:data:`peftcore.targets.usual.ATTENTION_PROJECTIONS`) if the adapters take linear layers, and none if not.
    A plugin may answer for them first, by the hook ``default_target_modules``."""

    paper: str | None = None
    """Where the method was published: an arXiv id, or the address of a publication that has none."""

    def __post_init__(self) -> None:
        settle = functools.partial(object.__setattr__, self)
        if not _is_class(self.config_cls, PeftConfig):
            self._refuse("config_cls", f"{self.config_cls!r} is no class that derives from PeftConfig.")
        if self.name == "":
            settle("name", self._stated_name())
        if problem := name_problem(self.name):
            self._refuse("name", f"{problem}.")
        self._check_config()
        self._check_classes()
        settle("default_targets", self._checked_targets())
        settle("prefix", self._checked_prefix())

    @property
    def peft_type(self) -> PeftType:
        """The method's member of :class:`PeftType`."""
        return PeftType.declare(self.name)

    def _stated_name(self) -> str:
        config = self.config_cls
        if config.method is None:
            problem = f"{config.__name__} belongs to no method. Write `class {config.__name__}(..., method=…)`."
            self._refuse("config_cls", problem)
        return config.method

    def _check_config(self) -> None:
        declared = self.config_cls.method
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

    def _checked_targets(self) -> Mapping[str, Sequence[str]]:
        given: Any = self.default_targets
        if given is None:
            adapts_linear = self.adapter_cls is not None and "linear" in self.adapter_cls.kinds
            return ATTENTION_PROJECTIONS if adapts_linear else {}
        if not isinstance(given, Mapping):
            self._refuse("default_targets", f"{given!r} is no mapping from types of models to names.")
        for model_type, names in given.items():
            is_listed = isinstance(names, Sequence) and not isinstance(names, str)
            if not (is_listed and isinstance(model_type, str) and all(isinstance(name, str) for name in names)):
                self._refuse("default_targets", f"{model_type!r} must stand for a list of names, got {names!r}.")
        return given

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
