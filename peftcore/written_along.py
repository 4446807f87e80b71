"""What other writers put into an adapter's file beside the adapter: frozen embeddings, and copies of saved biases.

HF PEFT writes an embedding's frozen weight along where the embedding is adapted or has been resized. If it is the
model's own, it says nothing new; if not, it counts, as a part of the adapter that does not train.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from peftcore import base_layers
from peftcore.adapters.selective import ModuleCopy, ReplacedWeight
from peftcore.base_layers.base import BaseLayer
from peftcore.checkpoint import SavedTensor
from peftcore.slots import Placement, Sites, Slot, one_view, unwrap
from peftcore.targets import Inventory, sites_of
from peftcore.tuner import Tuner

_SUFFIX = ".weight"
_ADAPTED = ".base_layer"


def take_what_was_written_along(
    tuner: Tuner, state: Mapping[str, Tensor], known: Mapping[str, SavedTensor]
) -> Mapping[str, Tensor]:
    """Return a file's tensors without those that are no part of the adapter.

    A frozen weight that differs from the model's becomes a part of the adapter, and stays.

    Args:
        tuner: The adapter, built and not yet in the model.
        state: The tensors by the file's names.
        known: The tensors that the adapter has, by their names there.
    """
    if state.keys() <= known.keys():
        return state
    kept = {key: value for key, value in state.items() if key in known or not _is_shadow(key, tuner)}
    if all(key in known for key in kept):
        return kept
    for key, path, sites, base in _frozen_weights(tuner, [key for key in kept if key not in known]):
        stored = getattr(base.layer, "weight", None)
        if not isinstance(stored, Tensor) or stored.shape != kept[key].shape or stored.is_meta:
            continue
        value = kept[key].to(stored.device, stored.dtype)
        if torch.equal(value, stored):
            del kept[key]
        elif not any(part.auxiliary and part.path == path for part in tuner.placements):
            replaced = functools.partial(ReplacedWeight, weight=value.clone())
            slot = one_view(
                Slot(path, key[len(tuner.layer_prefix) : -len(_SUFFIX)], sites, base, replaced, auxiliary=True)
            )
            tuner.placements.append(Placement.of(slot, slot.make(slot.base)))
    return kept


def _is_shadow(key: str, tuner: Tuner) -> bool:
    """Whether a name is that of a bias inside a saved module, which is written a second and a third time."""
    saved = (f"{tuner.layer_prefix}{p.key}." for p in tuner.placements if isinstance(p.adapter, ModuleCopy))
    return any(key.startswith((f"{path}modules_to_save.", f"{path}original_module.")) for path in saved)


def _frozen_weights(tuner: Tuner, keys: list[str]) -> Iterator[tuple[str, str, Sites, BaseLayer]]:
    """Yield (name, path, where it stands, layer) for names of a frozen embedding's or output layer's weight."""
    ends = {id(module) for module in _ends(tuner.model)}
    places = {here[0].path: here for here in Inventory(tuner.model, unwrap)}
    for key in keys:
        path = key[len(tuner.layer_prefix) : -len(_SUFFIX)].removesuffix(_ADAPTED)
        if not (key.startswith(tuner.layer_prefix) and key.endswith(_SUFFIX)) or path not in places:
            continue
        module = places[path][0].module
        base = base_layers.adapt(module)
        if base is not None and (base.kind == "embedding" or id(module) in ends):
            yield key, path, sites_of(places[path]), base


def _ends(model: nn.Module) -> Iterator[nn.Module]:
    for name in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, name)() if hasattr(model, name) else None
        if module is not None:
            yield unwrap(module)
