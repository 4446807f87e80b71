"""A batch equals its rows one by one, wherever the padding is."""

import pytest
import torch

from .models import (
    DECODERS,
    METHODS,
    TOKENS,
    continued,
    different,
    logits,
    one_step_after_another,
    padded,
    prompted,
    same,
)

ROWS = [{"input_ids": torch.tensor([row])} for row in TOKENS]
LENGTHS = [len(row) for row in TOKENS]


CASES = [pytest.param(name, method, id=f"{method}-{name}") for method in METHODS for name in DECODERS]
#: With a sliding window, padding on the left takes room in the window between a prefix and the tokens.
EXACT = [case for case in CASES if case.values != ("gemma3", "prefix_tuning")]


def own(method, output, row, side):
    """Return what a batch's output says of one row: of its virtual tokens, if they are embeddings, and its tokens."""
    length = LENGTHS[row] + (3 if method == "prompt_tuning" else 0)
    return output[row, -length:] if side == "left" else output[row, :length]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_virtual_tokens_change_the_output(name, method):
    model = prompted(name, method)
    for row in ROWS:
        with model.disable_adapter():
            frozen = logits(model, **row)
        assert different(logits(model, **row)[:, -frozen.shape[1] :], frozen)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "method"), EXACT)
def test_the_output_is_each_row_s(name, method, side):
    model = prompted(name, method)
    output = logits(model, **padded(side))
    for row, alone in enumerate(ROWS):
        same(own(method, output, row, side), logits(model, **alone)[0])


def test_with_a_sliding_window_and_a_prefix_only_padding_on_the_left_makes_a_difference():
    """There padding takes room in the window between the prefix and the tokens: a known limit."""
    model = prompted("gemma3", "prefix_tuning")
    right, left = logits(model, **padded("right")), logits(model, **padded("left"))
    alone = [logits(model, **row)[0] for row in ROWS]
    for row in range(3):
        same(own("prefix_tuning", right, row, "right"), alone[row])
    same(left[0], alone[0])
    assert different(left[2, -2:], alone[2])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "method"), EXACT)
def test_the_loss_is_the_rows_losses_together(name, method, side):
    model = prompted(name, method)
    batch = padded(side)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if method == "prefix_tuning" and side == "left":  # padding foretells a row's first token, as in the frozen model
        labels[torch.arange(3), [4 - length for length in LENGTHS]] = -100
    with torch.no_grad():
        together = model(**batch, labels=labels).loss
        alone = torch.stack([model(**row, labels=row["input_ids"]).loss for row in ROWS])
    # Behind virtual embeddings, a row's first token counts too.
    counted = torch.tensor(LENGTHS) - int(method == "prefix_tuning")
    same(together, (alone * counted).sum() / counted.sum())


@pytest.mark.parametrize(
    "settings", [{}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str
)
@pytest.mark.parametrize(("name", "method"), EXACT)
def test_each_row_is_continued_as_if_alone(name, method, settings):
    model = prompted(name, method)
    output = continued(model, **padded("left"), **settings)
    for row, alone in enumerate(ROWS):
        assert torch.equal(output[row, 4:], continued(model, **alone, **settings)[0, LENGTHS[row] :])


@pytest.mark.parametrize(
    "settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}], ids=str
)
@pytest.mark.parametrize(("name", "method"), CASES)
def test_what_is_generated_is_what_follows_step_by_step(name, method, settings):
    model = prompted(name, method)
    for row in ROWS:
        expected = one_step_after_another(model, row["input_ids"])
        assert torch.equal(continued(model, **row, **settings), expected)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"num_return_sequences": 2}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize(("name", "method"), EXACT)
def test_padding_changes_nothing_in_what_a_seed_samples(name, method, settings):
    model = prompted(name, method)
    plain = {"input_ids": torch.tensor([[3, 4, 5], [7, 8, 9]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    wide = {key: torch.nn.functional.pad(value, (2, 0)) for key, value in plain.items()}
    found = []
    for inputs in (plain, wide):
        torch.manual_seed(5)
        output = continued(model, **inputs, do_sample=True, top_k=0, **settings)
        found.append(output[:, inputs["input_ids"].shape[1] :])
    assert torch.equal(*found)
    torch.manual_seed(6)
    assert not torch.equal(found[0], continued(model, **plain, do_sample=True, top_k=0, **settings)[:, 3:])


@pytest.mark.parametrize("method", METHODS)
def test_lengths_are_those_of_what_the_user_sees(method):
    model = prompted("llama", method)
    row = ROWS[0]
    assert continued(model, **row, new=None, max_length=7).shape == (1, 7)
    ends = continued(model, **row, new=1)[0, -1].item()
    assert continued(model, **row, new=None, max_length=9, eos_token_id=ends).shape == (1, 5)
    assert continued(model, **row, new=None, max_length=9, min_length=8, eos_token_id=ends).shape[1] >= 8
    assert continued(model, **row, new=2, num_beams=4, num_return_sequences=3).shape == (3, 6)
