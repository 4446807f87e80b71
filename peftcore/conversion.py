"""Conversion: what an adapter does to each weight, as an adapter of another method that takes factors of low rank.

Each layer's Δ, the merged weight less the frozen one, is split by a singular value decomposition, which gives the
nearest matrix of a rank (Eckart and Young, 1936).
Nothing here knows a method: what is converted can be merged, and what it becomes derives from
:class:`~peftcore.adapters.low_rank.TakesFactors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import ThinFactors, WeightDelta
from peftcore.adapters.low_rank import TakesFactors
from peftcore.base_layers.base import BaseLayer
from peftcore.base_layers.parameter import ParameterLayer
from peftcore.checkpoint import adapter_state
from peftcore.config import LayerConfig
from peftcore.exceptions import NotMergeableError, PeftCoreError
from peftcore.merging import check_mergeable
from peftcore.model import PeftModel
from peftcore.progress import progress
from peftcore.registry import registry
from peftcore.slots import Placement
from peftcore.tuner import Tuner

#: What the new adapter is called while it stands in the model.
_NEW = "converted"


@dataclass(frozen=True)
class LayerError:
    """How well one layer's Δ was kept.

    Attributes:
        key: What the names of its tensors start with in a file.
        norm: Frobenius norm of Δ.
        error: Frobenius norm of what is lost, over that of Δ.
    """

    key: str
    norm: float
    error: float


@dataclass(frozen=True)
class Conversion:
    """A converted adapter.

    Attributes:
        config: Its config.
        state: Its tensors, by their names in a file.
        errors: What was lost, layer by layer.
    """

    config: LayerConfig
    state: Mapping[str, Tensor]
    errors: Sequence[LayerError]

    @property
    def error(self) -> float:
        """What was lost of all layers together, relative to all."""
        whole = math.hypot(*(layer.norm for layer in self.errors))
        return math.hypot(*(layer.norm * layer.error for layer in self.errors)) / whole if whole else 0.0


def check_takes_factors(method: str) -> type[TakesFactors]:
    """Return the class of a method's adapters, which takes factors.

    Raises:
        NotMergeableError: It does not; names the methods of loaded plugins that do.
    """
    adapter_cls = registry[method].adapter_cls
    if adapter_cls is not None and issubclass(adapter_cls, TakesFactors):
        return adapter_cls
    able = [name for name in registry.catalog.names() if _takes_factors(name)]
    raise NotMergeableError(
        f"Nothing can be converted to {method}: its adapters can't take any matrix of low rank. "
        f"Methods whose adapters can: {', '.join(able) or 'none of those installed'}."
    )


def _takes_factors(method: str) -> bool:
    try:
        adapter_cls = registry[method].adapter_cls
    except PeftCoreError:
        return False
    return adapter_cls is not None and issubclass(adapter_cls, TakesFactors)


def needs_weights(tuner: Tuner) -> bool:
    """Return whether an adapter's Δ can't be told without the frozen weights, or without what is made beside them."""
    return any(
        not isinstance(part, WeightDelta) or part.depends_on_weight or part.canonical_delta().is_meta
        for part in (placement.adapter for placement in tuner.placements if not placement.auxiliary)
    )


@torch.no_grad()
def convert(model: PeftModel, adapter_name: str, method: str, rank: int) -> Conversion:
    """Make an adapter of another method that does nearly the same.

    Args:
        model: Holds the adapter; the model is as before in the end. Its weights may be on the meta device unless
            :func:`needs_weights`.
        adapter_name: The adapter.
        method: What it is to become.
        rank: Of the new adapter's Δ on each layer.

    Raises:
        NotMergeableError: The adapter can't be merged, changes biases, or the other method takes no factors.
        ConfigError, UnsupportedLayerError: The other method, or the rank, does not go with a layer.
    """
    target_cls = check_takes_factors(method)
    source = model.base_model.tuner(adapter_name)
    if not isinstance(source.config, LayerConfig):
        raise NotMergeableError(f"Adapters of {source.method.name} change no weights, so they have no Δ to convert.")
    main = {placement.key: placement for placement in source.placements if not placement.auxiliary}
    config = target_cls.config_of_rank(rank, **_fields(source.config, method, list(main.values())))
    model.add_adapter(_NEW, config)
    try:
        target = model.base_model.tuner(_NEW)
        parts = [placement for placement in target.placements if not placement.auxiliary]
        errors = [_take(placement, main[placement.key], rank) for placement in progress(parts, "Converting")]
        state = {**adapter_state(target), **_auxiliary_state(source)}
        config.target_modules = target.target_names() or None
        return Conversion(config, {name: tensor.clone() for name, tensor in state.items()}, errors)
    finally:
        model.delete_adapter(_NEW)


def _fields(config: LayerConfig, method: str, parts: Sequence[Placement]) -> dict[str, object]:
    """Return what the new config has from the old one, and the places by name."""
    whole = [placement for placement in parts if placement.key == placement.path]
    bare = [part for part in parts if isinstance(part.base, ParameterLayer)]
    return {
        "target_modules": {placement.path for placement in whole if placement not in bare},
        "target_parameters": [f"{part.path}.{part.base.weight_name}" for part in bare] or None,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "bias": f"{method}_only" if config.bias == f"{config.method}_only" else config.bias,
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "auto_mapping": config.auto_mapping,
        "inference_mode": True,
    }


def _auxiliary_state(tuner: Tuner) -> dict[str, Tensor]:
    """Return what an adapter trains beside its method, which any method's adapter has under the same names."""
    return {
        f"{tuner.layer_prefix}{placement.key}.{name}": tensor
        for placement in tuner.placements
        if placement.auxiliary
        for name, tensor in placement.adapter.saved_module().state_dict().items()
    }


def _take(new: Placement, old: Placement, rank: int) -> LayerError:
    delta = _delta(old).double()
    thin = old.adapter.thin_factors() if isinstance(old.adapter, WeightDelta) else None
    a, b = _factors(delta, old.base, rank, thin)
    adapter = new.adapter
    assert isinstance(adapter, TakesFactors) and isinstance(adapter, WeightDelta)
    dtype = torch.float32 if delta.is_meta else adapter.dtype
    adapter.take_factors(a.to(dtype), b.to(dtype))
    norm = delta.norm().item()
    lost = (adapter.canonical_delta().double() - delta).norm().item()
    return LayerError(new.key, norm, lost / norm if norm else 0.0)


def _delta(placement: Placement) -> Tensor:
    """Return what an adapter adds to a layer's weight.

    Raises:
        NotMergeableError: No weight can hold its effect, or it changes the bias as well.
    """
    adapter, base = placement.adapter, placement.base
    check_mergeable([adapter])
    if isinstance(adapter, WeightDelta):
        delta, bias = adapter.canonical_delta(), adapter.delta_bias()
        _check_bias(placement, bias)
        return delta
    return _folded_delta(placement, adapter, base)


def _folded_delta(placement: Placement, adapter: Adapter, base: BaseLayer) -> Tensor:
    weight = base.weight().to(adapter.dtype)
    bias = None if base.bias is None else base.bias.to(adapter.dtype)
    folded, folded_bias = adapter.fold(weight, bias)
    if folded_bias is not None:
        _check_bias(placement, folded_bias if bias is None else folded_bias - bias)
    return folded - weight


def _check_bias(placement: Placement, change: Tensor | None) -> None:
    if change is not None and change.any():
        raise NotMergeableError(
            f"The adapter changes the bias of {placement.path}, which factors of its weight can't hold. "
            "Merge it instead."
        )


def _factors(delta: Tensor, base: BaseLayer, rank: int, thin: ThinFactors | None) -> tuple[Tensor, Tensor]:
    """Return A and B of a rank whose product is nearest to Δ, apart for each group or expert.

    Args:
        delta: Δ.
        base: The layer's view.
        rank: The rank.
        thin: Factors of which Δ is the product, if there are such.
    """
    if base.groups > 1:
        delta, rank = delta.reshape(base.groups, -1, *delta.shape[1:]).flatten(2), rank // base.groups
    elif base.stack == 1:
        delta = delta.flatten(1)
    if thin is not None and 2 * len(thin.a) < min(delta.shape):
        left, values, right = _decomposed_product(thin)
    else:
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
    kept = min(rank, values.shape[-1])
    root = values[..., :kept].sqrt()
    a, b = root[..., None] * right[..., :kept, :], left[..., :kept] * root[..., None, :]
    missing = rank - kept
    return (
        torch.cat([a, a.new_zeros(*a.shape[:-2], missing, a.shape[-1])], dim=-2),
        torch.cat([b, b.new_zeros(*b.shape[:-1], missing)], dim=-1),
    )


def _decomposed_product(thin: ThinFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of a product of thin factors, as small as they are."""
    a, b = thin.a.double(), thin.b.double() * thin.scaling
    across, upper_a = torch.linalg.qr(a.mT)
    along, upper_b = torch.linalg.qr(b)
    left, values, right = torch.linalg.svd(upper_b @ upper_a.mT)
    return along @ left, values, right @ across.mT
