"""The names that ``peftcore`` itself has, gathered from their rooms.

:mod:`peftcore` imports this room, and with it all the others and torch, when one of the names is first asked for.
"""

from peftcore.adapter_store import AdapterStore
from peftcore.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from peftcore.config import LayerConfig, PeftConfig
from peftcore.functional import (
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    inspect_targets,
    set_peft_model_state_dict,
)
from peftcore.hookspecs import hookimpl
from peftcore.mappings import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peftcore.method import PeftMethod
from peftcore.model import PeftModel
from peftcore.options import option
from peftcore.peft_type import PeftType, TaskType
from peftcore.registry import register_peft_method, unregister_peft_method
from peftcore.tasks import (
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)

__all__ = [
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_MIXED_MODEL_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "AdapterStore",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "LayerConfig",
    "PeftConfig",
    "PeftMethod",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "TaskType",
    "get_peft_model",
    "get_peft_model_state_dict",
    "hookimpl",
    "inject_adapter_in_model",
    "inspect_targets",
    "option",
    "register_peft_method",
    "set_peft_model_state_dict",
    "unregister_peft_method",
]
