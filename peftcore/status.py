"""What can be seen of the adapters in a model: parameter counts and the state of each layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapted_model import AdaptedModel
from peftcore.tuner import Tuner
from peftcore.views import View, number, share

#: Said where layers differ although they should not.
Irregular = Literal["irregular"]


@dataclass(frozen=True)
class LayerStatus:
    """The state of one adapted layer.

    Attributes:
        name: Its path in the user's model.
        module_type: Class of the frozen layer.
        enabled: Whether adapters act.
        active_adapters: Names of the active ones, in order.
        merged_adapters: Names of those folded into the weight, in order.
        requires_grad: By adapter: whether it trains, "irregular" if only some of its parameters do.
        available_adapters: Names of all that have a part here.
        devices: By adapter: the devices of its parameters.
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]


@dataclass(frozen=True)
class ModelStatus:
    """The state of a model's adapters as a whole; see :class:`LayerStatus` for the fields that both have.

    Attributes:
        base_model_type: Class of the user's model.
        adapter_model_type: Class that holds it.
        peft_types: By adapter: its method.
        trainable_params: Number of parameters that train.
        total_params: Number of all parameters.
        num_adapter_layers: Number of adapted layers.
        enabled, active_adapters, merged_adapters, available_adapters: As in :class:`LayerStatus`; "irregular" if layers
            differ where each has the adapters in question.
        requires_grad: By adapter.
        devices: By adapter.
    """

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]] = field(default_factory=dict)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of parameters that train and of all, counting what is packed (4-bit) unpacked."""
    trainable = total = 0
    for parameter in model.parameters():
        number = _numel(parameter)
        total += number
        trainable += number if parameter.requires_grad else 0
    return trainable, total


def _numel(parameter: nn.Parameter) -> int:
    # Sharded parameters say how large they are as a whole; packed ones say how they were before.
    number: int = getattr(parameter, "ds_numel", None) or parameter.numel()
    quant_state = getattr(parameter, "quant_state", None)
    return quant_state.shape.numel() if quant_state is not None else number


def layer_statuses(host: AdaptedModel) -> list[LayerStatus]:
    """Return the state of each adapted layer, in the order in which adapters were put in."""
    paths = {id(placement.layer): placement.path for _, placement in host.placements()}
    return [_layer_status(paths[id(layer)], layer) for layer in host.layers()]


def _layer_status(path: str, layer: AdaptedLayer) -> LayerStatus:
    return LayerStatus(
        name=path,
        module_type=type(layer.base_layer).__name__,
        enabled=not layer.disable_adapters,
        active_adapters=layer.active_adapters,
        merged_adapters=layer.merged_adapters,
        requires_grad={name: _agreed(p.requires_grad for p in _parameters(layer, name)) for name in layer.names()},
        available_adapters=sorted(layer.names()),
        devices={name: sorted({str(p.device) for p in _parameters(layer, name)}) for name in layer.names()},
    )


def _parameters(layer: AdaptedLayer, name: str) -> Iterable[nn.Parameter]:
    return (parameter for part in layer.parts(name) for parameter in part.parameters())


def model_status(host: AdaptedModel, holder: nn.Module) -> ModelStatus:
    """Return the state of all adapters together."""
    layers = layer_statuses(host)
    trainable, total = count_parameters(holder)
    tuners = host.tuners
    return ModelStatus(
        base_model_type=type(host.model).__name__,
        adapter_model_type=type(holder).__name__,
        peft_types={name: str(tuner.config.peft_type) for name, tuner in tuners.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=host.call_state.enabled,
        active_adapters=host.active_adapters,
        merged_adapters=_merged(layers),
        requires_grad={name: _agreed(p.requires_grad for p in tuner.parameters()) for name, tuner in tuners.items()},
        available_adapters=sorted(tuners),
        devices={name: sorted({str(p.device) for p in tuner.parameters()}) for name, tuner in tuners.items()},
    )


def _merged(layers: Iterable[LayerStatus]) -> list[str] | Irregular:
    """Names of the merged adapters, if each is merged wherever it has a part."""
    layers = list(layers)
    everywhere = list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))
    for name in everywhere:
        if any(name in layer.available_adapters and name not in layer.merged_adapters for layer in layers):
            return "irregular"
    return everywhere


def _agreed(answers: Iterable[bool]) -> bool | Irregular:
    found = set(answers)
    return "irregular" if len(found) == 2 else found == {True}


def model_view(host: AdaptedModel, holder: nn.Module) -> View:
    """Return what is seen of a model with adapters: a line for each, and how much of it all trains."""
    merged = {name for layer in host.layers() for name in layer.merged_adapters}
    rows = [
        (name, tuner.method.name, number(len(tuner.placements)), number(_count(tuner)), _state(host, tuner, merged))
        for name, tuner in host.tuners.items()
    ]
    trainable, total = count_parameters(holder)
    notes = [f"{number(trainable)} of {number(total)} parameters train ({share(trainable, total)})."]
    if not host.call_state.enabled:
        notes.insert(0, "The adapters are switched off.")
    title = f"{type(holder).__name__} with {type(host.model).__name__}"
    return View(title, ("adapter", "method", "parts", "parameters", "state"), rows, notes)


def _count(tuner: Tuner) -> int:
    return sum(_numel(parameter) for parameter in {id(p): p for p in tuner.parameters()}.values())


def _state(host: AdaptedModel, tuner: Tuner, merged: Collection[str]) -> str:
    """Say how an adapter fares; what acts is active or merged."""
    said = {
        "active": tuner.name in host.active_adapters,
        "merged": tuner.name in merged,
        "trains": any(parameter.requires_grad for parameter in tuner.parameters()),
    }
    return ", ".join(word for word, holds in said.items() if holds) or "idle"
