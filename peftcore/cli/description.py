"""What can be said of a method without a model: its family, its layers, its options, an example."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from typing import Any

import importlib_metadata

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.scale import OutputScale
from peftcore.catalog import catalog
from peftcore.config import LayerConfig, PeftConfig
from peftcore.method import PeftMethod
from peftcore.options import spell

_PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: How the bounds of an option are written.
_BOUNDS = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}


@dataclasses.dataclass(frozen=True)
class MethodDescription:
    """A method as its plugin describes it.

    Attributes:
        name: The method's.
        distribution: Its plugin's distribution and version; empty for one that was registered in this process.
        family: The core's class that its mathematics derives from.
        layers: Kinds of layers that it adapts; none for a prompt method.
        mergeable: "yes", "no", or "depends" on the layer or on the config.
        mixed_batch: "1 pass" where rows with different adapters share the frozen layer's work; "groups" where each
            adapter's rows run apart.
        paper: An arXiv id or an address.
    """

    name: str
    distribution: str
    family: str
    layers: tuple[str, ...]
    mergeable: str
    mixed_batch: str
    paper: str | None


@dataclasses.dataclass(frozen=True)
class OptionDescription:
    """One field of a method's config.

    Attributes:
        name: The field's.
        type: Its annotation, as a person would write it.
        default: Its default, as Python writes it.
        meaning: What it is for, and its bounds.
        shared: Whether every method of its sort has it.
    """

    name: str
    type: str
    default: str
    meaning: str
    shared: bool


def describe(method: PeftMethod) -> MethodDescription:
    """Return what a method's plugin says of it."""
    adapter = method.adapter_cls
    return MethodDescription(
        name=method.name,
        distribution=_distribution(method.name),
        family=_family(method),
        layers=tuple(sorted(adapter.kinds)) if adapter is not None else (),
        mergeable="no" if adapter is None else _mergeable(adapter),
        mixed_batch="1 pass" if adapter is None or _runs_once(adapter) else "groups",
        paper=method.paper,
    )


def _distribution(name: str) -> str:
    if name in catalog.in_process:
        return ""
    claim = catalog.claim(name)
    return f"{claim.distribution} {claim.version}"


def _family(method: PeftMethod) -> str:
    if method.encoder_cls is not None:
        return "PromptEncoder"
    if method.adapter_cls is None:
        return "Tuner"
    bases = (cls for cls in reversed(method.adapter_cls.__mro__) if cls.__module__.startswith("peftcore.adapters."))
    return next((cls for cls in bases if issubclass(cls, Adapter) and cls is not Adapter), Adapter).__name__


def _runs_once(adapter: type[Adapter]) -> bool:
    return issubclass(adapter, WeightDelta) or (issubclass(adapter, OutputScale) and adapter.is_by_vectors())


def _mergeable(adapter: type[Adapter]) -> str:
    declared: object = adapter.mergeable
    return {True: "yes", False: "no"}[declared] if isinstance(declared, bool) else "depends"


def describe_options(config_cls: type[PeftConfig]) -> list[OptionDescription]:
    """Return the fields of a method's config, the method's own first."""
    hints = typing.get_type_hints(config_cls)
    shared = {field.name for field in dataclasses.fields(LayerConfig)}
    options = [
        OptionDescription(
            name=field.name,
            type=spell(hints[field.name]),
            default=repr(_default(field)),
            meaning=" ".join([field.metadata.get("meaning", ""), *_bounds(field)]),
            shared=field.name in shared,
        )
        for field in dataclasses.fields(config_cls)
    ]
    return sorted(options, key=lambda option: option.shared)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _bounds(field: dataclasses.Field[Any]) -> Iterator[str]:
    limits = field.metadata.get("bounds", {})
    said = [f"{_BOUNDS[bound]} {limit}" for bound, limit in limits.items() if limit is not None]
    if said:
        yield f"({', '.join(said)})"


def example(method: PeftMethod) -> str:
    """Return Python that uses a method: the first of its distribution's readme, or one made of its config."""
    if method.name not in catalog.in_process:
        block = _PYTHON_BLOCK.search(_readme(catalog.claim(method.name).distribution))
        if block is not None:
            return block[1].rstrip()
    asked = "" if method.encoder_cls is not None else 'target_modules=["…"]'
    config = method.config_cls.__name__
    return (
        f"from peftcore import {config}, get_peft_model\n\nmodel = get_peft_model(model, {config}({asked}))\n"
        "model.print_trainable_parameters()"
    )


def _readme(distribution: str) -> str:
    try:
        metadata: Any = importlib_metadata.metadata(distribution)
    except importlib_metadata.PackageNotFoundError:
        return ""
    text = metadata.get_payload() or metadata.get("Description") or ""
    return text if isinstance(text, str) else ""
