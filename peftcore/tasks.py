"""PeftModels by task: what a task adds to a model with adapters.

A layer adapter serves every task alike, so there is little to add: a freshly made head has to be trained and saved with
the adapter, whatever the method. A class enters itself for its task by its class line.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from peftcore.config import LayerConfig, PeftConfig
from peftcore.exceptions import TaskError
from peftcore.model import PeftModel
from peftcore.peft_type import TaskType
from peftcore.prompts import PromptConfig


class PeftModelWithLabels(PeftModel):
    """A model that computes its loss from labels, which trainers look for in the signature of the class."""

    def forward(self, *args: Any, labels: Any = None, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the model; see :meth:`PeftModel.forward`."""
        if labels is not None:
            kwargs["labels"] = labels
        return super().forward(*args, adapter_names=adapter_names, **kwargs)


class PeftModelForCausalLM(PeftModelWithLabels, task_type=TaskType.CAUSAL_LM):
    """A causal language model with adapters."""


class PeftModelForSeq2SeqLM(PeftModelWithLabels, task_type=TaskType.SEQ_2_SEQ_LM):
    """An encoder-decoder language model with adapters."""


class PeftModelForFeatureExtraction(PeftModel, task_type=TaskType.FEATURE_EXTRACTION):
    """A model that gives features or embeddings, with adapters."""


class PeftModelWithHead(PeftModel):
    """A model whose head is new: it trains and is saved with every adapter."""

    #: What the heads of transformers' models for the task are called.
    head_names: ClassVar[tuple[str, ...]] = ()

    def _completed(self, config: PeftConfig) -> PeftConfig:
        """Return the config with the model's head among ``modules_to_save``.

        Raises:
            TaskError: The model has no such head, and the config names none.
        """
        if not isinstance(config, (LayerConfig, PromptConfig)):
            return config
        named = config.modules_to_save or []
        heads = [name for name in self.head_names if name in self.get_base_model()._modules]
        if not heads and not named:
            raise TaskError(
                f"Task {config.task_type} trains a head called {' or '.join(self.head_names)}, and "
                f"{type(self.get_base_model()).__name__} has none. "
                "Name its head in modules_to_save, or leave task_type out."
            )
        completed = copy.copy(config)
        completed.modules_to_save = [*named, *(head for head in heads if head not in named)]
        return completed


class PeftModelForSequenceClassification(PeftModelWithLabels, PeftModelWithHead, task_type=TaskType.SEQ_CLS):
    """A model that classifies sequences, with adapters."""

    head_names = ("classifier", "score")


class PeftModelForTokenClassification(PeftModelWithLabels, PeftModelWithHead, task_type=TaskType.TOKEN_CLS):
    """A model that classifies tokens, with adapters."""

    head_names = ("classifier", "score")


class PeftModelForQuestionAnswering(PeftModelWithHead, task_type=TaskType.QUESTION_ANS):
    """A model that finds answers in a text, with adapters."""

    head_names = ("qa_outputs",)

    def forward(
        self,
        *args: Any,
        start_positions: Any = None,
        end_positions: Any = None,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model; see :meth:`PeftModel.forward`. Trainers look for the positions in the class's signature."""
        if start_positions is not None:
            kwargs.update(start_positions=start_positions, end_positions=end_positions)
        return super().forward(*args, adapter_names=adapter_names, **kwargs)
