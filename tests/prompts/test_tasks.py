"""Labels, and places among the tokens, of every task."""

import pytest
import torch

import peftcore
from peftcore.exceptions import TaskError

from .models import METHODS, TOKENS, build, config, different, logits, padded, prompted, same

BATCH = padded("right")
ROWS = [torch.tensor([row]) for row in TOKENS]


@torch.no_grad()
def loss(model, **inputs):
    return model(**inputs).loss


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2, sequences", "llama, sequences"])
@pytest.mark.parametrize("method", METHODS)
def test_sequences_are_classified_each_by_itself(method, name):
    model = prompted(name, method, task_type="SEQ_CLS")
    labels = torch.tensor([2, 0, 1])
    alone = torch.cat([logits(model, input_ids=row) for row in ROWS])
    same(logits(model, **BATCH), alone)
    same(loss(model, **BATCH, labels=labels), torch.nn.functional.cross_entropy(alone, labels))
    assert different(logits(build(name), **BATCH), alone)


@pytest.mark.parametrize("name", ["gpt2, sequences", "llama, sequences"])
@pytest.mark.parametrize("method", METHODS)
def test_sequences_padded_on_the_left_are_classified_each_by_itself(method, name):
    model = prompted(name, method, task_type="SEQ_CLS")
    same(logits(model, **padded("left")), torch.cat([logits(model, input_ids=row) for row in ROWS]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", [3, 1])
def test_several_labels_per_sequence_are_no_labels_of_tokens(method, tokens):
    model = prompted("bert, several labels", method, tokens, task_type="SEQ_CLS")
    wanted = torch.tensor([[1.0, 0, 1]]).expand(3, -1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits(model, **BATCH), wanted)
    same(loss(model, **BATCH, labels=wanted), expected)
    # As many labels as tokens.
    ids = torch.tensor([[3, 4, 5]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits(model, input_ids=ids), wanted[:1])
    same(loss(model, input_ids=ids, labels=wanted[:1]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_tokens_stay_with_their_tokens(method):
    model = prompted("bert, tokens", method, task_type="TOKEN_CLS")
    labels = torch.tensor([[0, 1, 2, 0], [1, 1, 0, -100], [2, 0, -100, -100]])
    tokens = logits(model, **BATCH)[:, -4:]
    expected = torch.nn.functional.cross_entropy(tokens.flatten(0, 1), labels.flatten(), ignore_index=-100)
    same(loss(model, **BATCH, labels=labels), expected)
    for row, ids in enumerate(ROWS):
        same(tokens[row, : ids.shape[1]], logits(model, input_ids=ids)[0, -ids.shape[1] :])


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_found_behind_the_virtual_tokens(method):
    model = prompted("bert, answers", method, task_type="QUESTION_ANS")
    start, end = torch.tensor([1, 0, 1]), torch.tensor([3, 2, 1])
    with torch.no_grad():
        output = model(**BATCH, start_positions=start, end_positions=end)
    front = 3 if method == "prompt_tuning" else 0
    assert output.start_logits.shape == (3, 4 + front)
    nll = torch.nn.functional.cross_entropy
    same(output.loss, (nll(output.start_logits, start + front) + nll(output.end_logits, end + front)) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_features_of_virtual_tokens_come_with_the_others(method):
    model = prompted("bert, features", method, task_type="FEATURE_EXTRACTION")
    output = logits(model, **BATCH)
    assert output.shape[1] == (7 if method == "prompt_tuning" else 4)
    for row, ids in enumerate(ROWS):
        alone = logits(model, input_ids=ids)[0]
        same(output[row, : len(alone)], alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_the_head_trains_and_is_saved(method, task, tmp_path):
    name = {"SEQ_CLS": "bert", "TOKEN_CLS": "bert, tokens"}[task]
    model = prompted(name, method, task_type=task).train()
    labels = torch.tensor([2, 0, 1]) if task == "SEQ_CLS" else BATCH["input_ids"] % 3
    model(**BATCH, labels=labels).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 3 and all(
        parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = peftcore.PeftModel.from_pretrained(build(name), tmp_path)
    assert type(loaded) is type(model) and type(model).__name__ != "PeftModel"
    same(logits(loaded.eval(), **BATCH), logits(model.eval(), **BATCH))
    with model.disable_adapter():
        assert torch.equal(logits(model, **BATCH), logits(build(name), **BATCH))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_the_task_s_head_is_refused(method):
    plain = build("llama")
    with pytest.raises(TaskError, match=r"classifier or score.*LlamaForCausalLM"):
        peftcore.get_peft_model(plain, config(method, task_type="SEQ_CLS"))
    assert torch.equal(logits(plain, **BATCH), logits(build("llama"), **BATCH))
    assert all(parameter.requires_grad for parameter in plain.parameters())
