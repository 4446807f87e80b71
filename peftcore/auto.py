"""AutoPeftModel: the base model and the adapter of an adapter directory, in one call.

The directory's config says which base model it was made for; transformers loads it.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

from torch import nn

from peftcore.config import PeftConfig
from peftcore.exceptions import CheckpointError, TaskError
from peftcore.hub import resolve_directory
from peftcore.model import PeftModel

#: Libraries whose model classes a file may name.
KNOWN_LIBRARIES = frozenset({"transformers", "diffusers", "sentence_transformers"})

#: By task: the class of transformers that loads a base model for it.
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


class AutoPeftModel:
    """Loads the base model that an adapter directory names, and the adapter into it."""

    #: Class of transformers that loads the base model; None where the config's ``auto_mapping`` names one.
    auto_class: ClassVar[str | None] = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Load a base model and an adapter.

        Args:
            pretrained_model_name_or_path: The adapter directory.
            adapter_name: What to call the adapter.
            is_trainable: Whether it goes on training.
            config: Instead of the directory's.
            revision: The adapter's, on the hub.
            subfolder: Where in the directory the adapter is.
            **kwargs: For the base model's ``from_pretrained``.

        Raises:
            CheckpointError: The directory is damaged or names no base model.
            TaskError: The config is for another task than this class.
        """
        where = resolve_directory(pretrained_model_name_or_path, {"subfolder": subfolder, "revision": revision})
        config = PeftConfig.from_pretrained(where) if config is None else config
        if not config.base_model_name_or_path:
            raise CheckpointError(f"{where} does not say which base model it is for; load that one and use PeftModel.")
        if config.revision is not None:
            kwargs.setdefault("revision", config.revision)
        loader: Any = cls._loader(config)
        base: nn.Module = loader.from_pretrained(config.base_model_name_or_path, **kwargs)
        return PeftModel.from_pretrained(base, where, adapter_name, is_trainable, config)

    @classmethod
    def _check_task(cls, config: PeftConfig) -> None:
        wanted = None if config.task_type is None else AUTO_CLASSES[config.task_type.value]
        if wanted not in (None, cls.auto_class):
            raise TaskError(
                f"The adapter is for the task {config.task_type}, whose base model {wanted} loads, and {cls.__name__} "
                f"loads one with {cls.auto_class}. Use AutoPeftModel, which follows the adapter's config."
            )

    @classmethod
    def _loader(cls, config: PeftConfig) -> type:
        if cls.auto_class is not None:
            cls._check_task(config)
            return _class_of("transformers", cls.auto_class)
        if config.task_type is not None:
            return _class_of("transformers", AUTO_CLASSES[config.task_type.value])
        mapping = config.auto_mapping or {}
        library, name = str(mapping.get("parent_library", "")), str(mapping.get("base_model_class", ""))
        if library.split(".")[0] not in KNOWN_LIBRARIES or not name:
            raise TaskError(
                f"The config names no task, and its base model's class is {name or 'not given'} of "
                f"{library or 'no library'}, which is not loaded automatically. Load the base model and use PeftModel."
            )
        return _class_of(library, name)


def _class_of(library: str, name: str) -> type:
    try:
        found: type = getattr(importlib.import_module(library), name)
    except ImportError as error:
        raise TaskError(f"Loading the base model needs {library.split('.')[0]}: pip install peftcore[hf]") from error
    except AttributeError as error:
        raise TaskError(f"{library} has no class {name}; another version of it may.") from error
    return found


class AutoPeftModelForCausalLM(AutoPeftModel):
    """For causal language models."""

    auto_class = AUTO_CLASSES["CAUSAL_LM"]


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """For encoder-decoder language models."""

    auto_class = AUTO_CLASSES["SEQ_2_SEQ_LM"]


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """For models that classify sequences."""

    auto_class = AUTO_CLASSES["SEQ_CLS"]


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """For models that classify tokens."""

    auto_class = AUTO_CLASSES["TOKEN_CLS"]


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """For models that find answers in a text."""

    auto_class = AUTO_CLASSES["QUESTION_ANS"]


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """For models that give features or embeddings."""

    auto_class = AUTO_CLASSES["FEATURE_EXTRACTION"]
