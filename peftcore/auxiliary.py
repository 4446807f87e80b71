"""What an adapter trains beside its method: whole modules, biases, rows of the embedding.

Each is planned as slots of the Selective family, so it switches, merges, mixes and is saved as everything else.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from peftcore import base_layers
from peftcore.adapters.base import Adapter
from peftcore.adapters.selective import ModuleCopy, ParameterCopies, RowsApart, TrainedBias, TrainedTokens
from peftcore.base_layers.base import BaseLayer
from peftcore.base_layers.module import OpaqueLayer
from peftcore.config import LayerConfig
from peftcore.exceptions import ConfigError, TargetError
from peftcore.merging import stored_weight
from peftcore.slots import Sites, Slot, unwrap
from peftcore.targets import Inventory, NearestNames, OnUnmatched, sites_of
from peftcore.tying import owners_of_weights, tie_copies


def plan_auxiliary(
    model: nn.Module, config: LayerConfig, main: Sequence[Slot], on_unmatched: OnUnmatched = "error"
) -> list[Slot]:
    """Return the slots for ``modules_to_save``, ``bias`` and ``trainable_token_indices``.

    Args:
        model: The user's model.
        config: The adapter's config.
        main: The slots of the method itself.
        on_unmatched: What to do about modules to save that the model does not have.

    Raises:
        TargetError: The model does not have what the config names.
        ConfigError: Two wishes exclude each other.
    """
    copies = list(plan_modules_to_save(model, config.modules_to_save or (), on_unmatched))
    slots = [
        *(tie_copies(model, copies) if config.ensure_weight_tying else copies),
        *_biases(model, config, main),
        *_tokens(model, config, main),
    ]
    return [*slots, *_owners_that_read(model, [*main, *slots])]


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, Sites]]:
    """Yield (path, frozen module, where it stands) for every module below a model, shared ones once."""
    for places in Inventory(model, unwrap):
        yield places[0].path, places[0].module, sites_of(places)


def _is_called(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


# ---------------------------------------------------------------------------------------- whole modules


def plan_modules_to_save(model: nn.Module, names: Sequence[str], on_unmatched: OnUnmatched) -> Iterator[Slot]:
    """Yield the slots for whole modules.

    Args:
        model: The user's model.
        names: The modules' names, or ends of their paths.
        on_unmatched: What to do about one that the model does not have.

    Raises:
        TargetError: The model does not have one.
    """
    if not names:
        return
    found: set[str] = set()
    taken: list[str] = []
    for path, module, sites in _walk(model):
        hits = [name for name in names if _is_called(path, name)]
        found.update(hits)
        if hits and not any(path.startswith(f"{outer}.") for outer in taken):
            taken.append(path)  # what is inside is part of this copy
            yield Slot(path, path, sites, OpaqueLayer(module), _copy_of, auxiliary=True)
    for name in names:
        if name not in found and on_unmatched != "ignore":
            near = NearestNames(path for path, _, _ in _walk(model)).to_name(name)
            advice = f" Did you mean {', '.join(near)}?" if near else ""
            message = f"modules_to_save names {name!r}, and the model has no such module.{advice}"
            if on_unmatched == "error":
                raise TargetError(message)
            warnings.warn(message, stacklevel=2)


def _copy_of(base: BaseLayer) -> ModuleCopy:
    return ModuleCopy(base, bare_copy(base.layer))


def bare_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module without the adapters in it, which act on the original."""
    bare = copy.deepcopy(unwrap(module))
    _strip(bare)
    return bare


def _strip(module: nn.Module) -> None:
    for name, child in module.named_children():
        module._modules[name] = unwrap(child)
        _strip(unwrap(child))


# ------------------------------------------------------------------------------------------------ biases


def _biases(model: nn.Module, config: LayerConfig, main: Sequence[Slot]) -> Iterator[Slot]:
    if config.bias == "none":
        return
    adapted = {id(slot.base.layer) for slot in main}
    for slot in main:
        if slot.base.kind in TrainedBias.kinds and slot.base.bias is not None:
            yield Slot(slot.path, f"{slot.key}.base_layer", slot.sites, slot.base, TrainedBias, auxiliary=True)
    if config.bias == "all":
        yield from _other_biases(model, adapted, config.modules_to_save or ())


def _other_biases(model: nn.Module, adapted: set[int], saved: Sequence[str]) -> Iterator[Slot]:
    for path, module, sites in _walk(model):
        if (
            id(module) in adapted
            or not sites
            or any(_is_called(outer, name) for outer in _outer(path) for name in saved)
        ):
            continue
        if module._parameters.get("bias") is None:
            continue
        base = base_layers.adapt(module)
        if base is not None and base.kind in TrainedBias.kinds:
            yield Slot(path, path, sites, base, TrainedBias, auxiliary=True)
        else:
            copies = functools.partial(ParameterCopies, names=["bias"])
            yield Slot(path, path, sites, OpaqueLayer(module), copies, auxiliary=True)


def _outer(path: str) -> Iterator[str]:
    """Yield a path and the paths of all that it lies in."""
    parts = path.split(".")
    return (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))


# ------------------------------------------------------------------------------------- rows of embeddings


def _tokens(model: nn.Module, config: LayerConfig, main: Sequence[Slot]) -> Iterator[Slot]:
    wanted = config.trainable_token_indices
    if not wanted:
        return
    taken = {id(slot.base.layer) for slot in main}
    for name, tokens in wanted.items() if isinstance(wanted, dict) else [(None, wanted)]:
        path, module, sites = _embedding(model, name)
        if id(module) in taken:
            raise ConfigError(
                f"{path} is adapted as a whole already; take it out of target_modules or drop trainable_token_indices."
            )
        yield from _tokens_of(model, path, module, sites, tokens)


def _tokens_of(model: nn.Module, path: str, module: nn.Module, sites: Sites, tokens: Sequence[int]) -> Iterator[Slot]:
    base = base_layers.adapt(module)
    if base is None or base.kind != "embedding":
        raise TargetError(f"trainable_token_indices needs an embedding; {path} is a {type(module).__name__}.")
    make = functools.partial(TrainedTokens, tokens=tokens)
    yield from with_tied_rows(model, Slot(path, f"{path}.token_adapter", sites, base, make, auxiliary=True))


def with_tied_rows(model: nn.Module, slot: Slot) -> Iterator[Slot]:
    """Yield a slot for rows of an embedding, and one for each other layer that stores the same weight.

    Args:
        model: The user's model.
        slot: A slot that makes :class:`TrainedTokens`.
    """
    make: Callable[[BaseLayer], Adapter] = functools.cache(slot.make)
    own = replace(slot, make=make, starts_from_values=True)
    yield own
    weight = stored_weight(slot.base)
    for owner in owners_of_weights(model).get(id(weight), ()) if weight is not None else ():
        base = base_layers.adapt(owner.module)
        if owner.module is not unwrap(slot.base.layer) and base is not None:
            key = owner.path + slot.key[len(slot.path) :]
            yield Slot(owner.path, key, owner.sites, base, lambda base: make(own.base).tied(base, None), auxiliary=True)


def _embedding(model: nn.Module, name: str | None) -> tuple[str, nn.Module, Sites]:
    """Find the embedding that is named, or the model's input embedding."""
    asked = getattr(model, "get_input_embeddings", None)
    default = unwrap(asked()) if name is None and asked is not None else None
    wanted = name or "embed_tokens"
    for path, module, sites in _walk(model):
        if module is default or (default is None and _is_called(path, wanted)):
            return path, module, sites
    near = NearestNames(path for path, _, _ in _walk(model)).to_name(wanted)
    raise TargetError(
        f"trainable_token_indices: the model has no embedding {wanted!r}. "
        f"Name it, as in {{'{near[0] if near else 'embedding'}': [0, 1]}}."
    )


# ------------------------------------------------------------------------------ owners that read their parts


def _owners_that_read(model: nn.Module, slots: Sequence[Slot]) -> Iterator[Slot]:
    """Yield slots for attentions that are not adapted themselves and read the weights of a part that is."""
    adapted = {id(slot.base.layer) for slot in slots}
    parents = {id(parent) for slot in slots for parent, _ in slot.sites if isinstance(parent, nn.MultiheadAttention)}
    if parents - adapted:
        for path, module, sites in _walk(model):
            if id(module) in parents - adapted:
                yield Slot(path, "", sites, OpaqueLayer(module), RowsApart, auxiliary=True)
