"""adapter_names=: rows with different virtual tokens, with other adapters and with none, in one batch."""

import pytest
import torch

from peftcore.exceptions import MixedBatchError, TaskError

from .models import (
    DECODERS,
    METHODS,
    build,
    config,
    continued,
    different,
    encoder,
    logits,
    lora,
    padded,
    prompted,
    same,
)

NAMES = ["default", "short", "lora", "__base__"]
#: The rows of the batch, each with an adapter of its own; the longest and the shortest have virtual tokens.
TOKENS = ([3, 4], [7, 8, 9, 5], [10, 11, 12], [13, 14, 15])


def several(name, method, task=None):
    """Return a model with three virtual tokens ("default"), with two ("short"), and with another kind of adapter."""
    model = prompted(name, method, task_type=task)
    torch.manual_seed(2)
    model.add_adapter("short", config(method, 2, task_type=task))
    model.add_adapter("lora", lora(task_type=task))
    return model


def alone(model, name, ask, *args, **kwargs):
    """Return what one row's adapter answers by itself."""
    if name == "__base__":
        with model.disable_adapter():
            return ask(model, *args, **kwargs)
    model.set_adapter(name)
    return ask(model, *args, **kwargs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_each_row_has_its_adapter(method, name, side):
    if (method, name, side) == ("prefix_tuning", "gemma3", "left"):
        side = "right"  # a sliding window does not go with padding behind a prefix
    model, batch = several(name, method), padded(side, TOKENS)
    output = logits(model, **batch, adapter_names=NAMES)
    for row, (tokens, adapter) in enumerate(zip(TOKENS, NAMES, strict=True)):
        # Padded as in the batch: in rows without virtual tokens, models count positions as they do by themselves.
        own = {key: value[row : row + 1] for key, value in batch.items()}
        expected = alone(model, adapter, logits, **own)[0, -4:]
        shown = own["attention_mask"][0] == 1
        assert shown.sum() == len(tokens)
        same(output[row, -4:][shown], expected[shown])


@pytest.mark.parametrize("method", METHODS)
def test_a_row_with_fewer_virtual_tokens_has_them_right_in_front_of_its_tokens(method):
    model = several("llama", method)
    output = logits(model, **padded("left", TOKENS), adapter_names=["short", "default", "short", "__base__"])
    if method == "prompt_tuning":
        expected = alone(model, "short", logits, input_ids=torch.tensor([TOKENS[0]]))[0]
        same(output[0, -4:], expected)
    assert output.shape[1] == (7 if method == "prompt_tuning" else 4)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str
)
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_each_row_is_continued_by_its_adapter(method, name, settings):
    model = several(name, method)
    rows = ([3, 4, 5], [7, 8, 9], [10, 11, 12], [13, 14, 15])
    output = continued(model, **padded("left", rows), adapter_names=NAMES, **settings)
    for row, (tokens, adapter) in enumerate(zip(rows, NAMES, strict=True)):
        ids = torch.tensor([tokens])
        assert torch.equal(output[row], alone(model, adapter, continued, ids, **settings)[0])


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2, sequences", "llama, sequences"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_are_classified_by_their_adapters_and_heads(method, name):
    model = several(name, method, "SEQ_CLS")
    rows = ([3, 4, 5, 6], [7, 8, 9, 5], [10, 11, 12, 1], [13, 14, 15, 2])
    output = logits(model, **padded("right", rows), adapter_names=NAMES)
    for row, (tokens, adapter) in enumerate(zip(rows, NAMES, strict=True)):
        ids = torch.tensor([tokens])
        same(output[row], alone(model, adapter, logits, input_ids=ids)[0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_of_an_encoder_with_padding(method, side):
    model = several("bert", method, "SEQ_CLS")
    output = logits(model, **padded("right", TOKENS), adapter_names=NAMES)
    for row, (tokens, adapter) in enumerate(zip(TOKENS, NAMES, strict=True)):
        ids = torch.tensor([tokens])
        same(output[row], alone(model, adapter, logits, input_ids=ids)[0])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_rows_of_an_encoder_decoder_model(name):
    model = several(name, "prompt_tuning", "SEQ_2_SEQ_LM")
    labels = torch.tensor([[5, 6, 7]] * 4)
    output = logits(model, **padded("right", TOKENS), labels=labels, adapter_names=NAMES)
    written = continued(model, **padded("right", TOKENS), adapter_names=NAMES)
    for row, (tokens, adapter) in enumerate(zip(TOKENS, NAMES, strict=True)):
        ids = torch.tensor([tokens])
        same(
            output[row],
            alone(model, adapter, logits, input_ids=ids, labels=labels[:1])[0],
        )
        assert torch.equal(written[row], alone(model, adapter, continued, ids)[0])


def test_rows_of_t5_with_different_prefixes():
    model = several("t5", "prefix_tuning", "SEQ_2_SEQ_LM")
    labels = torch.tensor([[5, 6, 7]] * 4)
    output = logits(model, **padded("right", TOKENS), labels=labels, adapter_names=NAMES)
    for settings in ({}, {"num_beams": 2}):
        written = continued(model, **padded("right", TOKENS), adapter_names=NAMES, **settings)
        for row, (tokens, adapter) in enumerate(zip(TOKENS, NAMES, strict=True)):
            ids = torch.tensor([tokens])
            same(output[row], alone(model, adapter, logits, input_ids=ids, labels=labels[:1])[0])
            assert torch.equal(written[row], alone(model, adapter, continued, ids, **settings)[0])


def test_rows_of_a_decoder_that_counts_positions_by_itself_need_prefixes_of_one_length():
    model = several("bart", "prefix_tuning", "SEQ_2_SEQ_LM")
    with pytest.raises(TaskError, match=r"Bart.*takes no decoder_position_ids"):
        model(**padded("right", TOKENS), labels=torch.tensor([[5, 6, 7]] * 4), adapter_names=NAMES)
    with pytest.raises(TaskError, match=r"Bart.*takes no decoder_position_ids"):
        continued(model, **padded("right", TOKENS), adapter_names=NAMES)
    model.delete_adapter("short")
    model.add_adapter("short", config("prefix_tuning", 3))
    names = ["default", "short", "short", "default"]
    written = continued(model, **padded("right", TOKENS), adapter_names=names)
    for row, (tokens, adapter) in enumerate(zip(TOKENS, names, strict=True)):
        assert torch.equal(written[row], alone(model, adapter, continued, torch.tensor([tokens]))[0])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_each_adapter_from_its_rows(method):
    model = several("llama", method)
    tables = [encoder(model, name).prompt_embeddings.requires_grad_(True) for name in ("default", "short")]
    batch = padded("left", TOKENS)
    output = model(**batch, adapter_names=["default", "short", "lora", "default"])
    output.logits[1].square().sum().backward()
    assert not tables[0].grad.any() and tables[1].grad.any(1 if method == "prompt_tuning" else 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_any_row_for_a_prompt_is_left_alone(method):
    model = several("llama", method)
    output = logits(model, **padded("left", TOKENS), adapter_names=["__base__"] * 4)
    assert torch.equal(output, logits(build("llama"), **padded("left", TOKENS)))


def test_names_have_to_fit():
    model = several("llama", "prompt_tuning")
    for names, problem in ((["default"], "4 rows"), (["default", "other", "lora", "short"], "'other'")):
        with pytest.raises(MixedBatchError, match=problem):
            model(**padded("left", TOKENS), adapter_names=names)
    assert different(logits(model, **padded("left", TOKENS))[:, -4:], logits(build("llama"), **padded("left", TOKENS)))
