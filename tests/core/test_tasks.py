"""Task classes and AutoPeftModel."""

import json

import pytest
import torch
from torch import nn

import peftcore
from peftcore import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from peftcore.exceptions import CheckpointError, TaskError

from .methods import PlainConfig
from .models import Net, anatomy, assert_as_before, differs, same, stir

CLASSES = {
    "CAUSAL_LM": "PeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "PeftModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "PeftModelForFeatureExtraction",
    "SEQ_CLS": "PeftModelForSequenceClassification",
    "TOKEN_CLS": "PeftModelForTokenClassification",
    "QUESTION_ANS": "PeftModelForQuestionAnswering",
}


class WithHeads(nn.Module):
    def __init__(self, *heads):
        super().__init__()
        self.body = nn.Linear(5, 4)
        for head in heads:
            self.add_module(head, nn.Linear(4, 3))

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


@pytest.mark.parametrize("task", CLASSES)
def test_the_class_follows_the_task(task, tmp_path):
    head = "qa_outputs" if task == "QUESTION_ANS" else "classifier"
    model = get_peft_model(WithHeads(head), PlainConfig(target_modules=["body"], task_type=task))
    assert type(model) is getattr(peftcore, CLASSES[task])
    model.save_pretrained(tmp_path)
    assert type(PeftModel.from_pretrained(WithHeads(head), tmp_path)) is type(model)
    explicit = getattr(peftcore, CLASSES[task]).from_pretrained(WithHeads(head), tmp_path)
    assert explicit.peft_config["default"].task_type is TaskType[task]


@pytest.mark.parametrize(
    ("task", "head"),
    [("SEQ_CLS", "classifier"), ("SEQ_CLS", "score"), ("TOKEN_CLS", "classifier"), ("QUESTION_ANS", "qa_outputs")],
)
def test_a_head_trains_and_is_saved_with_every_adapter(task, head):
    given = PlainConfig(target_modules=["body"], task_type=task)
    model = get_peft_model(WithHeads(head), given)
    model.add_adapter("b", PlainConfig(target_modules=["body"], task_type=task))
    for name in ("default", "b"):
        assert f"base_model.model.{head}.weight" in get_peft_model_state_dict(model, adapter_name=name)
    assert head in model.peft_config["default"].modules_to_save
    assert given.modules_to_save is None


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", None])
def test_other_tasks_save_no_head(task):
    model = get_peft_model(WithHeads("classifier"), PlainConfig(target_modules=["body"], task_type=task))
    assert len(get_peft_model_state_dict(model)) == 2


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_a_model_without_the_tasks_head(task):
    net = WithHeads("other")
    before = anatomy(net)
    with pytest.raises(TaskError, match=f"{task}.*WithHeads.*modules_to_save"):
        get_peft_model(net, PlainConfig(target_modules=["body"], task_type=task))
    assert_as_before(net, before)
    named = get_peft_model(net, PlainConfig(target_modules=["body"], task_type=task, modules_to_save=["other"]))
    assert "base_model.model.other.weight" in get_peft_model_state_dict(named)


# --------------------------------------------------------------------------------------------- AutoPeftModel


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny classifier on the disk."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path


IDS = torch.arange(1, 9).reshape(2, 4)


@pytest.fixture
def saved(bert, tmp_path):
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    frozen = base(IDS).logits
    model = stir(get_peft_model(base, PlainConfig(target_modules=["query", "value"], task_type="SEQ_CLS")))
    model.save_pretrained(tmp_path)
    expected = model(IDS).logits
    differs(expected, frozen)
    return tmp_path, expected


@pytest.mark.parametrize("loader", [AutoPeftModel, AutoPeftModelForSequenceClassification])
def test_base_model_and_adapter_in_one_call(saved, loader):
    path, expected = saved
    model = loader.from_pretrained(path)
    assert type(model).__name__ == "PeftModelForSequenceClassification"
    same(model(IDS).logits, expected)
    assert not any(p.requires_grad for p in model.parameters())
    trainable = loader.from_pretrained(path, adapter_name="mine", is_trainable=True)
    assert all(p.requires_grad for p in trainable.base_model.tuner("mine").parameters())


def test_without_a_task_the_class_is_named_in_the_file(bert, tmp_path):
    from transformers import AutoModel

    base = AutoModel.from_pretrained(bert).eval()
    model = get_peft_model(base, PlainConfig(target_modules=["query"]))
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModel.from_pretrained(tmp_path)
    assert type(loaded.get_base_model()).__name__ == "BertModel"
    same(loaded(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_arguments_for_the_base_model_reach_it(saved):
    path, _ = saved
    model = AutoPeftModel.from_pretrained(path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("loader", [AutoPeftModelForCausalLM, AutoPeftModelForFeatureExtraction])
def test_an_adapter_for_another_task(saved, loader):
    with pytest.raises(TaskError, match="SEQ_CLS"):
        loader.from_pretrained(saved[0])


def test_a_class_from_a_library_that_is_not_known_is_not_loaded(tmp_path):
    get_peft_model(Net(), PlainConfig(target_modules=["one"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    values["base_model_name_or_path"] = "somewhere"
    values["auto_mapping"] = {"base_model_class": "system", "parent_library": "os"}
    path.write_text(json.dumps(values))
    with pytest.raises(TaskError, match="system of os"):
        AutoPeftModel.from_pretrained(tmp_path)


def test_a_file_that_names_no_base_model(tmp_path):
    get_peft_model(Net(), PlainConfig(target_modules=["one"])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="which base model"):
        AutoPeftModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "./nowhere/at/all"])
def test_a_place_that_is_not_there(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        AutoPeftModel.from_pretrained(place)
