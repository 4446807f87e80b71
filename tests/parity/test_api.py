"""What people know by name is here by that name, with the same parameters in the same order."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import peft
import pytest

import peftcore
from peftcore import LoraConfig, PeftModel
from peftcore.status import LayerStatus, ModelStatus

from .harness import Case

#: Parameters of HF PEFT's functions that ours do not have, and why.
LEFT_OUT: dict[str, dict[str, str]] = {
    "from_pretrained": {
        "ephemeral_gpu_offload": "for DoRA's initialisation, which this LoRA does not have",
        "low_cpu_mem_usage": "through **kwargs, as load_adapter has it",
        "key_mapping": "through **kwargs, as load_adapter has it",
    },
    "load_adapter": {"ephemeral_gpu_offload": "for DoRA's initialisation, which this LoRA does not have"},
    "save_pretrained": {
        "save_embedding_layers": "taken through **kwargs: frozen layers are never written",
        "path_initial_model_for_weight_conversion": "for PiSSA and its like, which this LoRA does not have",
    },
    "get_peft_model_state_dict": {
        "unwrap_compiled": "through **kwargs: names follow from the structure, compiled or not",
        "save_embedding_layers": "taken through **kwargs: frozen layers are never written",
    },
}

FUNCTIONS = [
    "get_peft_model",
    "inject_adapter_in_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]

METHODS = [
    "__init__",
    "forward",
    "generate",
    "from_pretrained",
    "save_pretrained",
    "add_adapter",
    "load_adapter",
    "set_adapter",
    "delete_adapter",
    "disable_adapter",
    "get_base_model",
    "get_nb_trainable_parameters",
    "print_trainable_parameters",
    "get_model_status",
    "get_layer_status",
]

#: Reached through the PeftModel as well, but defined by `base_model`.
TUNER_METHODS = ["merge_adapter", "unmerge_adapter", "merge_and_unload", "unload", "set_adapter", "delete_adapter"]

#: Public names of HF PEFT's PeftModel that ours does not have, and why.
METHODS_LEFT_OUT = {
    "base_model_torch_dtype": "the model's own dtype says it",
    "create_or_update_model_card": "files hold what readers read",
    "get_prompt": "prompt methods bring theirs",
    "get_prompt_embedding_to_save": "prompt methods bring theirs",
    "prepare_model_for_gradient_checkpointing": "not an adapter's business",
    "set_requires_grad": "set_adapter says what trains",
    "supports_lora_conversion": "conversion is not part of this version",
    "has_active_enabled_adapter": "get_model_status() says it",
    "modules_to_save": "the config says it",
}

#: Fields of HF PEFT's LoraConfig that ours does not have: variants of LoRA, refused by name when a file asks for them.
FIELDS_LEFT_OUT = {
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "monteclora_config",
    "qalora_group_size",
    "runtime_config",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
}


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def assert_accepts_all(ours: Callable[..., Any], theirs: Callable[..., Any], left_out: dict[str, str]) -> None:
    here, there = parameters(ours), parameters(theirs)
    assert set(there) - set(here) == set(left_out), "parameters differ from the list of those left out"
    common = [name for name in there if name in here]
    for name in common:
        if there[name].default is not inspect.Parameter.empty:
            assert here[name].default == there[name].default, f"default of {name}"
    positional = [name for name in common if here[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == common[: len(positional)], "the order differs"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_the_same(name):
    assert_accepts_all(getattr(peftcore, name), getattr(peft, name), LEFT_OUT.get(name, {}))


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_the_same(name):
    assert_accepts_all(getattr(PeftModel, name), getattr(peft.PeftModel, name), LEFT_OUT.get(name, {}))


@pytest.mark.parametrize("name", TUNER_METHODS)
def test_methods_of_the_base_model_take_the_same(name):
    ours = Case("mlp", target_modules=["first"]).ours()
    assert_accepts_all(getattr(type(ours.base_model), name), getattr(peft.LoraModel, name), {})
    assert callable(getattr(ours, name))


def test_every_public_name_is_here_or_left_out_for_a_reason():
    ours = Case("mlp", target_modules=["first"]).ours()
    own = {name for name in dir(peft.PeftModel) if not name.startswith("_")} - set(dir(peft.PeftModel.__mro__[2]))
    missing = {name for name in own if not hasattr(ours, name)}
    assert missing <= set(METHODS_LEFT_OUT)
    assert all(METHODS_LEFT_OUT.values())


@pytest.mark.parametrize("keyword", ["low_cpu_mem_usage", "key_mapping", "strict", "torch_device", "subfolder"])
def test_from_pretrained_takes_what_load_adapter_takes(keyword, tmp_path):
    case = Case("mlp", target_modules=["first"])
    case.ours().save_pretrained(tmp_path)
    values = {"low_cpu_mem_usage": True, "key_mapping": {}, "strict": True, "torch_device": "cpu", "subfolder": ""}
    PeftModel.from_pretrained(case.build(), tmp_path, **{keyword: values[keyword]})


def test_configs_have_the_same_fields():
    ours, theirs = ({field.name for field in dataclasses.fields(cls)} for cls in (LoraConfig, peft.LoraConfig))
    assert theirs - ours == FIELDS_LEFT_OUT


def test_configs_take_keywords_only():
    """HF PEFT takes values by position as well, in an order that changes between its versions."""
    with pytest.raises(TypeError):
        LoraConfig("CAUSAL_LM")  # type: ignore[misc]


#: Backends are plugins that give layers of their own classes; `module_type` names them.
STATUS_LEFT_OUT = {"quantization_backend"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(LayerStatus, peft.peft_model.TunerLayerStatus), (ModelStatus, peft.peft_model.TunerModelStatus)],
    ids=["layer", "model"],
)
def test_a_status_has_the_same_fields(ours, theirs):
    here, there = ({field.name for field in dataclasses.fields(cls)} for cls in (ours, theirs))
    assert there - here == STATUS_LEFT_OUT


def test_the_status_of_a_model_says_the_same():
    case = Case("mlp", target_modules=["first", "second"])
    ours, theirs = case.ours(), case.theirs()
    here, there = ours.get_model_status(), theirs.get_model_status()
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    for field in dataclasses.fields(there):
        if field.name not in {"adapter_model_type", "peft_types"} | STATUS_LEFT_OUT:
            assert getattr(here, field.name) == getattr(there, field.name), field.name
    layers = {status.name: status for status in theirs.get_layer_status()}
    for status in ours.get_layer_status():
        other = layers[status.name] if status.name in layers else layers[f"model.{status.name}"]
        assert status.active_adapters == other.active_adapters
        assert status.available_adapters == other.available_adapters
        assert status.requires_grad == other.requires_grad


def test_a_layer_answers_what_people_ask_of_it():
    case = Case("mlp", target_modules=["first"])
    ours, theirs = (model.base_model.model.first for model in (case.ours(), case.theirs()))
    for name in ("in_features", "out_features", "active_adapters", "merged", "merged_adapters", "disable_adapters"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("r", "lora_alpha", "scaling"):
        assert dict(getattr(ours, name)) == dict(getattr(theirs, name)), name
    for name in ("lora_A", "lora_B"):
        assert getattr(ours, name)["default"].weight.shape == getattr(theirs, name)["default"].weight.shape
    assert ours.base_layer.weight is ours.weight
    assert ours.get_base_layer() is ours.base_layer


TASKS = [
    "CausalLM",
    "FeatureExtraction",
    "QuestionAnswering",
    "Seq2SeqLM",
    "SequenceClassification",
    "TokenClassification",
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["PeftModel", "AutoPeftModel"])
def test_classes_for_tasks_have_the_same_names(kind, task):
    for library in (peft, peftcore):
        assert isinstance(getattr(library, kind), type)
        assert isinstance(getattr(library, f"{kind}For{task}"), type)


def test_tasks_have_the_same_names():
    assert {task.name for task in peft.TaskType} == {task.name for task in peftcore.TaskType}
