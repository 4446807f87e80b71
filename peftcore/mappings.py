"""What the registry knows, as read-only live mappings from PeftType.

The mappings follow each registration and each refresh.
Their length, iteration and ``in`` import no plugin; a lookup imports the one it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from peftcore.config import PeftConfig
from peftcore.exceptions import PluginError, UnknownMethodError
from peftcore.peft_type import PeftType
from peftcore.registry import Registry, registry

T = TypeVar("T")


class MethodMapping(Mapping[PeftType, T], Generic[T]):
    """Something about each method, by its PeftType or its name in any case."""

    def __init__(self, registry: Registry, pick: Callable[[str], T]) -> None:
        self._registry = registry
        self._pick = pick

    def __getitem__(self, method: str) -> T:
        return self._pick(method)

    def __iter__(self) -> Iterator[PeftType]:
        return map(PeftType.declare, self._registry.catalog.names())

    def __len__(self) -> int:
        return len(self._registry.catalog.names())

    def __contains__(self, method: object) -> bool:
        return method in self._registry

    def __repr__(self) -> str:
        # Not by iteration, which would import plugins in the subclass.
        return f"<{type(self).__name__} over {', '.join(self._registry.catalog.names()) or 'no methods'}>"


class MixedMethodMapping(MethodMapping[T]):
    """The same for the methods whose adapters can be active beside those of other methods.

    Only a method's plugin can tell, so length, iteration and ``in`` import the plugins; one that fails is left out.
    """

    def __getitem__(self, method: str) -> T:
        if not self._registry[method].is_mixed_compatible:
            raise UnknownMethodError(
                f"Adapters of the method {method!r} can't be active beside those of other methods."
            )
        return super().__getitem__(method)

    def __iter__(self) -> Iterator[PeftType]:
        return (member for member in super().__iter__() if member in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, method: object) -> bool:
        try:
            return isinstance(method, str) and self._registry[method].is_mixed_compatible
        except (PluginError, UnknownMethodError):
            return False


PEFT_TYPE_TO_CONFIG_MAPPING: Mapping[PeftType, type[PeftConfig]] = MethodMapping(registry, registry.find_config_class)
PEFT_TYPE_TO_TUNER_MAPPING: Mapping[PeftType, type] = MethodMapping(registry, registry.find_tuner_class)
PEFT_TYPE_TO_PREFIX_MAPPING: Mapping[PeftType, str] = MethodMapping(registry, lambda method: registry[method].prefix)
PEFT_TYPE_TO_MIXED_MODEL_MAPPING: Mapping[PeftType, type] = MixedMethodMapping(registry, registry.find_tuner_class)
