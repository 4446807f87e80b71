"""Base models that commands work on: transformers' own, from a folder or the hub, never with code from there."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftcore.auto import AUTO_CLASSES
from peftcore.config import PeftConfig
from peftcore.exceptions import BaseModelError


def outline(reference: str, adapter: PeftConfig) -> nn.Module:
    """Make a model on the meta device, from its config alone: sizes and names, no weights.

    Args:
        reference: A folder with a transformers ``config.json``, such a file, or ``owner/name`` on the hub.
        adapter: Its task, or what it says of its base model, decides the model's class.

    Raises:
        BaseModelError: It is none of these, or no model that transformers knows.
    """
    config = _model_config(reference)
    model_cls = _class_for(config, adapter)
    try:
        with torch.device("meta"):
            model: nn.Module = model_cls.from_config(config) if hasattr(model_cls, "from_config") else model_cls(config)
    except Exception as error:
        raise BaseModelError(f"No model can be made from the config of {reference}: {_one_line(error)}") from error
    return model.eval()


def load_base(reference: str, adapter: PeftConfig) -> nn.Module:
    """Load a model with its weights; arguments and errors are those of :func:`outline`."""
    model_cls = _class_for(_model_config(reference), adapter)
    try:
        loaded: nn.Module = model_cls.from_pretrained(reference, torch_dtype="auto", trust_remote_code=False)
    except Exception as error:
        raise BaseModelError(f"The base model {reference} can't be loaded: {_one_line(error)}") from error
    return loaded.eval()


def _model_config(reference: str) -> Any:
    transformers = _transformers()
    path = Path(reference)
    on_hub = reference.count("/") <= 1 and not reference.startswith((".", "/", "~"))
    if not path.exists() and not on_hub:
        raise BaseModelError(f"{reference} does not exist. Name a folder with a transformers model in it.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise BaseModelError(f"{path} holds no config.json, so no transformers model is there.")
    try:
        return transformers.AutoConfig.from_pretrained(reference, trust_remote_code=False)
    except Exception as error:
        raise BaseModelError(f"{reference} names no model that transformers knows: {_one_line(error)}") from error


def _class_for(config: Any, adapter: PeftConfig) -> Any:
    """Return the class that an adapter's task asks for, else the one that its file or the model's config names."""
    transformers = _transformers()
    if adapter.task_type is not None:
        return getattr(transformers, AUTO_CLASSES[adapter.task_type.value])
    named = [(adapter.auto_mapping or {}).get("base_model_class"), *(getattr(config, "architectures", None) or ())]
    for name in named:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


def _transformers() -> Any:
    try:
        found = importlib.import_module("transformers")
    except ImportError as error:
        raise BaseModelError("Base models are transformers models: pip install 'peftcore[hf]'") from error
    with contextlib.suppress(AttributeError):
        found.logging.set_verbosity_error()
        found.logging.disable_progress_bar()
    return found


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"
