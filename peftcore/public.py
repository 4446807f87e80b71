"""The names that ``peftcore`` itself has, and the rooms that they stand in.

A room is imported, and with it what it needs, when one of its names is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from peftcore.collector import paused_collector

if TYPE_CHECKING:
    from peftcore.adapter_store import AdapterStore as AdapterStore
    from peftcore.auto import AutoPeftModel as AutoPeftModel
    from peftcore.auto import AutoPeftModelForCausalLM as AutoPeftModelForCausalLM
    from peftcore.auto import AutoPeftModelForFeatureExtraction as AutoPeftModelForFeatureExtraction
    from peftcore.auto import AutoPeftModelForQuestionAnswering as AutoPeftModelForQuestionAnswering
    from peftcore.auto import AutoPeftModelForSeq2SeqLM as AutoPeftModelForSeq2SeqLM
    from peftcore.auto import AutoPeftModelForSequenceClassification as AutoPeftModelForSequenceClassification
    from peftcore.auto import AutoPeftModelForTokenClassification as AutoPeftModelForTokenClassification
    from peftcore.config import LayerConfig as LayerConfig
    from peftcore.config import PeftConfig as PeftConfig
    from peftcore.functional import get_peft_model as get_peft_model
    from peftcore.functional import get_peft_model_state_dict as get_peft_model_state_dict
    from peftcore.functional import inject_adapter_in_model as inject_adapter_in_model
    from peftcore.functional import inspect_targets as inspect_targets
    from peftcore.functional import set_peft_model_state_dict as set_peft_model_state_dict
    from peftcore.hookspecs import hookimpl as hookimpl
    from peftcore.mappings import PEFT_TYPE_TO_CONFIG_MAPPING as PEFT_TYPE_TO_CONFIG_MAPPING
    from peftcore.mappings import PEFT_TYPE_TO_MIXED_MODEL_MAPPING as PEFT_TYPE_TO_MIXED_MODEL_MAPPING
    from peftcore.mappings import PEFT_TYPE_TO_PREFIX_MAPPING as PEFT_TYPE_TO_PREFIX_MAPPING
    from peftcore.mappings import PEFT_TYPE_TO_TUNER_MAPPING as PEFT_TYPE_TO_TUNER_MAPPING
    from peftcore.method import PeftMethod as PeftMethod
    from peftcore.model import PeftModel as PeftModel
    from peftcore.options import option as option
    from peftcore.peft_type import PeftType as PeftType
    from peftcore.peft_type import TaskType as TaskType
    from peftcore.registry import register_peft_method as register_peft_method
    from peftcore.registry import unregister_peft_method as unregister_peft_method
    from peftcore.tasks import PeftModelForCausalLM as PeftModelForCausalLM
    from peftcore.tasks import PeftModelForFeatureExtraction as PeftModelForFeatureExtraction
    from peftcore.tasks import PeftModelForQuestionAnswering as PeftModelForQuestionAnswering
    from peftcore.tasks import PeftModelForSeq2SeqLM as PeftModelForSeq2SeqLM
    from peftcore.tasks import PeftModelForSequenceClassification as PeftModelForSequenceClassification
    from peftcore.tasks import PeftModelForTokenClassification as PeftModelForTokenClassification

#: By public name: its room. Type checkers read the same from the imports above.
ROOMS = {
    "AdapterStore": "adapter_store",
    "AutoPeftModel": "auto",
    "AutoPeftModelForCausalLM": "auto",
    "AutoPeftModelForFeatureExtraction": "auto",
    "AutoPeftModelForQuestionAnswering": "auto",
    "AutoPeftModelForSeq2SeqLM": "auto",
    "AutoPeftModelForSequenceClassification": "auto",
    "AutoPeftModelForTokenClassification": "auto",
    "LayerConfig": "config",
    "PEFT_TYPE_TO_CONFIG_MAPPING": "mappings",
    "PEFT_TYPE_TO_MIXED_MODEL_MAPPING": "mappings",
    "PEFT_TYPE_TO_PREFIX_MAPPING": "mappings",
    "PEFT_TYPE_TO_TUNER_MAPPING": "mappings",
    "PeftConfig": "config",
    "PeftMethod": "method",
    "PeftModel": "model",
    "PeftModelForCausalLM": "tasks",
    "PeftModelForFeatureExtraction": "tasks",
    "PeftModelForQuestionAnswering": "tasks",
    "PeftModelForSeq2SeqLM": "tasks",
    "PeftModelForSequenceClassification": "tasks",
    "PeftModelForTokenClassification": "tasks",
    "PeftType": "peft_type",
    "TaskType": "peft_type",
    "get_peft_model": "functional",
    "get_peft_model_state_dict": "functional",
    "hookimpl": "hookspecs",
    "inject_adapter_in_model": "functional",
    "inspect_targets": "functional",
    "option": "options",
    "register_peft_method": "registry",
    "set_peft_model_state_dict": "functional",
    "unregister_peft_method": "registry",
}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(ROOMS)
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with paused_collector():
        room = importlib.import_module(f"peftcore.{ROOMS[name]}")
    return globals().setdefault(name, getattr(room, name))
