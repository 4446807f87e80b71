"""Functions over models: how adapters come in from the outside, and how their tensors go out.

They work on a :class:`~peftcore.model.PeftModel` and on a model that was adapted in place alike.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from peftcore.adapted_model import AdaptedModel
from peftcore.checkpoint import (
    LoadReport,
    adapter_state,
    live_tensors,
    load_adapter_state,
    other_values,
)
from peftcore.config import PeftConfig
from peftcore.exceptions import CheckpointError, ConfigError, MergeError
from peftcore.model import PeftModel
from peftcore.registry import registry
from peftcore.signatures import refuse_arguments
from peftcore.targets import OnUnmatched, TargetReport
from peftcore.tuner import LayerTuner, Tuner


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig | Mapping[str, Any] | str | os.PathLike[str],
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
    on_unmatched: OnUnmatched = "error",
    **options: Any,
) -> PeftModel:
    """Put an adapter into a model and return the PeftModel that its task asks for.

    Args:
        model: The user's model; its layers are replaced in place.
        peft_config: A config; or a method's name, with its options as keywords; or a config's values in a dict; or the
            path of an ``adapter_config.json`` or of a directory that holds one.
        adapter_name: What to call the adapter.
        mixed: Accepted for HF PEFT's callers; adapters of different methods always go together here.
        autocast_adapter_dtype: Keep float32 adapters on layers of a coarser dtype.
        revision: The base model's, for the config.
        low_cpu_mem_usage: Make adapters on the meta device, for weights that are loaded right after.
        on_unmatched: What to do about targets that match nothing: "error", "warn" or "ignore".
        **options: The method's options, where a name was given.

    Raises:
        PeftCoreError: The model is as before.
    """
    config = as_config(peft_config, options)
    if revision is not None:
        config = copy.copy(config)
        config.revision = revision
    return PeftModel.class_for(config)(
        model,
        config,
        adapter_name,
        autocast_adapter_dtype=autocast_adapter_dtype,
        low_cpu_mem_usage=low_cpu_mem_usage,
        on_unmatched=on_unmatched,
    )


def as_config(
    given: PeftConfig | Mapping[str, Any] | str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> PeftConfig:
    """Make a config of a method's name, a dict or a path; a config is returned as it is.

    Raises:
        ConfigError: It is none of these, or there are options beside something else than a method's name.
    """
    if isinstance(given, str) and given in registry:
        return registry[given].config_cls(**dict(options or {}))
    if options:
        raise ConfigError(f"Options ({', '.join(options)}) go with a method's name; set them in the config instead.")
    if isinstance(given, PeftConfig):
        return given
    if isinstance(given, Mapping):
        return PeftConfig.from_dict(given)
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(
            f"An adapter needs a PeftConfig, a dict, a method's name or a path, got {type(given).__name__}."
        )
    path = Path(given)
    if path.is_dir():
        return PeftConfig.from_pretrained(path)
    if path.is_file():
        return PeftConfig.from_json_file(path)
    raise registry.catalog.absence(str(given))


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
    on_unmatched: OnUnmatched = "error",
) -> nn.Module:
    """Put an adapter into a model in place and return the model itself.

    Args:
        peft_config: The adapter's config.
        model: The user's model, with or without adapters.
        adapter_name: What to call the adapter.
        low_cpu_mem_usage: Make the adapter on the meta device, for weights that are loaded right after.
        state_dict: Tensors to load into it, strictly.
        on_unmatched: What to do about targets that match nothing.

    Raises:
        PeftCoreError: The model is as before.
    """
    host = AdaptedModel.of(_user_model(model))
    if state_dict is not None:
        host.load(adapter_name, peft_config, state_dict, source="", low_cpu_mem_usage=low_cpu_mem_usage)
    else:
        host.add_adapter(adapter_name, peft_config, low_cpu_mem_usage=low_cpu_mem_usage, on_unmatched=on_unmatched)
    return model


def inspect_targets(model: nn.Module, peft_config: PeftConfig) -> TargetReport[Any]:
    """Report what a config would adapt in a model, and what it does not match; the model is only read.

    Raises:
        TargetError: The config asks for nothing at all.
        ConfigError: The config's method has no targets.
    """
    peft_config.validate()
    method = registry[str(peft_config.peft_type)]
    tuner_cls = registry.find_tuner_class(method.name)
    if not issubclass(tuner_cls, LayerTuner):
        raise ConfigError(f"Method {method.name!r} adapts no layers, so it has no targets.")
    return tuner_cls(_user_model(model), "", peft_config, method).report()


def _user_model(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def get_peft_model_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None = None, adapter_name: str = "default", **kwargs: Any
) -> dict[str, Tensor]:
    """Return an adapter's tensors under the names that its file has.

    Args:
        model: A PeftModel, or a model that was adapted in place.
        state_dict: The model's own state dict to take the values from (a gathered one), by the live names.
        adapter_name: Which adapter.

    Raises:
        AdapterNameError: There is no such adapter.
        CheckpointError: The state dict given lacks some of its tensors.
    """
    refuse_arguments(
        "get_peft_model_state_dict", kwargs, {"unwrap_compiled": (False,), "save_embedding_layers": ("auto", False)}
    )
    tuner = AdaptedModel.of(_user_model(model)).tuner(adapter_name)
    state = adapter_state(tuner) if state_dict is None else _taken_from(state_dict, tuner, model)
    if isinstance(model, PeftModel):
        return state
    # A model that was adapted in place knows nothing of the holder whose name the prefix is.
    return {key.removeprefix(tuner.layer_prefix): tensor for key, tensor in state.items()}


def _taken_from(state_dict: Mapping[str, Tensor], tuner: Tuner, model: nn.Module) -> dict[str, Tensor]:
    """Take an adapter's tensors out of a state dict of the whole model, which has them by their live names."""
    paths = {id(module): path for path, module in model.named_modules()}
    places = live_tensors(tuner)
    names = [f"{paths[id(place.owner)]}.{place.name}" for place in places]
    lost = [name for name in names if name not in state_dict]
    if lost:
        raise CheckpointError(
            f"The state dict given lacks {lost[0]} and {len(lost) - 1} more tensors of adapter {tuner.name!r}."
        )
    with other_values(places, [state_dict[name] for name in names]):
        return adapter_state(tuner)


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
    strict: bool = True,
) -> LoadReport:
    """Load tensors into an adapter that is in the model already.

    Args:
        model: A PeftModel, or a model that was adapted in place.
        peft_model_state_dict: By the names that files have.
        adapter_name: Which adapter.
        ignore_mismatched_sizes: Leave wrongly shaped tensors as they were.
        low_cpu_mem_usage: Take the given tensors themselves instead of copying their values.
        strict: Refuse missing, unexpected and wrongly shaped tensors; otherwise report them.

    Raises:
        AdapterNameError: There is no such adapter.
        CheckpointError: Something does not fit; the adapter is as before.
        MergeError: The adapter is merged.
    """
    tuner = AdaptedModel.of(_user_model(model)).tuner(adapter_name)
    if any(adapter_name in placement.layer.merged_adapters for placement in tuner.placements):
        raise MergeError(
            f"Adapter {adapter_name!r} is merged, and could not be taken out again with other tensors. "
            "Call unmerge_adapter() first."
        )
    state = peft_model_state_dict
    return load_adapter_state(
        tuner,
        registry.convert_checkpoint(tuner.method.name, state, tuner.config, "") or state,
        strict=strict,
        assign=low_cpu_mem_usage,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
