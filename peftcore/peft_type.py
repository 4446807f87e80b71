"""PeftType, an open enumeration of the installed methods, and TaskType.

``PeftType`` behaves as a string enumeration whose members are whatever the catalog holds at the moment::

    PeftType.C3A is PeftType("c3a") is PeftType["C3A"]
    PeftType.C3A == "C3A"
    [member.name for member in PeftType]

Listing the members imports no plugin.
It is no :class:`enum.Enum`, since an enumeration's members are fixed when its class is made.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NoReturn

from peftcore.catalog import canonical, catalog, name_problem
from peftcore.exceptions import RegistrationError

_members: dict[str, PeftType] = {}


class _OpenEnum(type):
    """Gives a class the reading side of an enumeration, over the catalog."""

    def __call__(cls, value: object) -> PeftType:
        """Return the member of a method's name, in any case, or of a member itself."""
        if isinstance(value, PeftType):
            return value
        if isinstance(value, str) and value in catalog:
            return PeftType.declare(canonical(value))
        raise catalog.absence(value)

    def __getitem__(cls, name: str) -> PeftType:
        return cls(name)

    def __getattr__(cls, name: str) -> PeftType:
        # Dunders and lower-case names are probes by other code; none of them may cost a scan.
        if name.isupper() and not name.startswith("_"):
            if name in catalog:
                return PeftType.declare(canonical(name))
            raise AttributeError(str(catalog.absence(name)))
        raise AttributeError(f"PeftType has no attribute {name!r}; its members are written in upper case.")

    def __iter__(cls) -> Iterator[PeftType]:
        return map(PeftType.declare, catalog.names())

    def __len__(cls) -> int:
        return len(catalog.names())

    def __bool__(cls) -> bool:
        return True

    def __contains__(cls, value: object) -> bool:
        return value in catalog

    def __dir__(cls) -> list[str]:
        return [*super().__dir__(), *map(str, cls)]

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise AttributeError(f"PeftType is read-only; register a method to add a member (tried to set {name!r}).")

    def __delattr__(cls, name: str) -> NoReturn:
        raise AttributeError(f"PeftType is read-only (tried to delete {name!r}).")


class PeftType(str, metaclass=_OpenEnum):
    """A method's type: the upper case of its name, as ``adapter_config.json`` has it.

    Members are strings, made once each, so ``is`` and ``==`` both work, also with plain strings.

    Raises:
        UnknownMethodError: on a call (it is a ValueError) or a subscription (it is a KeyError) with an unknown name.
        PluginDisabledError: on the same with the name of a method that is switched off.
        AttributeError: on an attribute that is no member.
    """

    __slots__ = ()

    @staticmethod
    def declare(method: str) -> PeftType:
        """Return the member of a method that may not be in the catalog (yet).

        A config class knows its method before that is registered, and a pickled member outlives its plugin.
        Declaring adds nothing to the listing.

        Raises:
            RegistrationError: ``method`` is no method name.
        """
        member = _members.get(method)
        if member is None:
            if problem := name_problem(method):
                raise RegistrationError(f"{problem}.")
            member = _members.setdefault(method, str.__new__(PeftType, method.upper()))
        return member

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("PeftType can't be subclassed; register a method to add a member.")

    @property
    def name(self) -> str:
        """The member's name, equal to its value."""
        return str(self)

    @property
    def value(self) -> str:
        """The plain string, as written to files."""
        return str(self)

    @property
    def method(self) -> str:
        """The method's name, in lower case."""
        return self.lower()

    def __repr__(self) -> str:
        return f"<PeftType.{self}: {str(self)!r}>"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        # Serves pickle, copy and deepcopy, each of which must give the one member of that name.
        return _restore, (self.method,)


def _restore(method: str) -> PeftType:
    return PeftType.declare(method)


class TaskType(str, enum.Enum):
    """What the adapted model is used for; decides the class of the PeftModel and what else is trained."""

    SEQ_CLS = "SEQ_CLS"
    """Classification of a whole sequence."""
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    """Language modelling from one sequence to another, by an encoder and a decoder."""
    CAUSAL_LM = "CAUSAL_LM"
    """Language modelling from left to right."""
    TOKEN_CLS = "TOKEN_CLS"
    """Classification of each token."""
    QUESTION_ANS = "QUESTION_ANS"
    """Extraction of an answer's start and end from a text."""
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"
    """Hidden states, used as features by something else."""
