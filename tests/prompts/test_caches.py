"""Going on from caches: those that hold virtual tokens, and those that were computed without."""

import copy

import pytest
import torch

from .models import DECODERS, METHODS, build, continued, different, logits, padded, prompted, same

BATCH = padded("left")
IDS, MASK = BATCH["input_ids"], BATCH["attention_mask"]
CASES = [pytest.param(name, method, id=f"{method}-{name}") for method in METHODS for name in DECODERS]


def cache_of(model, **inputs):
    with torch.no_grad():
        return model(**inputs, use_cache=True).past_key_values


def with_ones(mask, number):
    return torch.cat([mask, mask.new_ones(len(mask), number)], 1)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_call_goes_on_from_a_cache(name, method, masked):
    model = prompted(name, method)
    ids, mask = (IDS, MASK) if masked else (IDS[:1], None)
    masks = ({"attention_mask": mask[:, :2]}, {"attention_mask": mask}) if masked else ({}, {})
    cache = cache_of(model, input_ids=ids[:, :2], **masks[0])
    rest = logits(model, input_ids=ids[:, 2:], past_key_values=cache, **masks[1])
    same(rest, logits(model, input_ids=ids, attention_mask=mask)[:, -2:])
    assert rest.shape[1] == 2  # the virtual tokens are in the cache


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_generation_goes_on_from_what_generation_returned(name, method, copied):
    model = prompted(name, method)
    first = continued(model, **BATCH, new=3, return_dict_in_generate=True)
    cache = copy.deepcopy(first.past_key_values) if copied else first.past_key_values
    rest = continued(model, first.sequences, attention_mask=with_ones(MASK, 3), past_key_values=cache, new=3)
    assert torch.equal(rest, continued(model, **BATCH, new=6))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_generation_goes_on_from_a_call_s_cache_and_a_call_from_generation_s(name, method):
    model = prompted(name, method)
    cache = cache_of(model, input_ids=IDS[:, :3], attention_mask=MASK[:, :3])
    assert torch.equal(continued(model, **BATCH, past_key_values=copy.deepcopy(cache)), continued(model, **BATCH))
    first = continued(model, **BATCH, new=3, return_dict_in_generate=True)
    expected = logits(model, input_ids=first.sequences, attention_mask=with_ones(MASK, 3))[:, -1:]
    last = logits(
        model,
        input_ids=first.sequences[:, -1:],
        attention_mask=with_ones(MASK, 3),
        past_key_values=first.past_key_values,
    )
    same(last, expected)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_one_cache_of_a_common_beginning_serves_many_rows(name, method):
    model = prompted(name, method)
    begun = cache_of(model, input_ids=IDS[:1, :2])
    for end in ([5, 6], [9, 9, 1]):
        ids = torch.cat([IDS[:1, :2], torch.tensor([end])], 1)
        assert torch.equal(continued(model, ids, past_key_values=copy.deepcopy(begun)), continued(model, ids))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_cache_without_virtual_tokens_gets_them_behind_what_it_holds(name, method):
    model, frozen = prompted(name, method), build(name)
    cache = cache_of(frozen, input_ids=IDS[:1, :2])
    output = logits(model, input_ids=IDS[:1, 2:], past_key_values=copy.deepcopy(cache))
    assert output.shape[1] == (5 if method == "prompt_tuning" else 2)
    plain = logits(frozen, input_ids=IDS[:1, 2:], past_key_values=copy.deepcopy(cache))
    assert different(output[:, -2:], plain)
    written = continued(model, IDS[:1], past_key_values=copy.deepcopy(cache), new=3)
    ids = IDS[:1]
    for _ in range(3):
        step = logits(model, input_ids=ids[:, 2:], past_key_values=copy.deepcopy(cache))
        ids = torch.cat([ids, step[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, ids)


def test_virtual_embeddings_behind_a_cache_are_what_the_model_makes_of_them_there():
    model, frozen = prompted("llama"), build("llama")
    cache = cache_of(frozen, input_ids=IDS[:1, :2])
    table = model.base_model.tuner("default").encoder.prompt_embeddings
    embeds = torch.cat([table[None], frozen.get_input_embeddings()(IDS[:1, 2:])], 1)
    expected = logits(frozen, inputs_embeds=embeds, past_key_values=copy.deepcopy(cache))
    same(logits(model, input_ids=IDS[:1, 2:], past_key_values=cache), expected)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_cache_of_the_user_s_is_filled(method):
    from transformers import DynamicCache

    model = prompted("llama", method)
    cache = DynamicCache(config=model.config)
    same(logits(model, **BATCH, past_key_values=cache), logits(model, **BATCH))
    assert cache.get_seq_length() == 7
    same(
        logits(model, input_ids=IDS[:, :1], attention_mask=with_ones(MASK, 1), past_key_values=cache),
        logits(model, input_ids=torch.cat([IDS, IDS[:, :1]], 1), attention_mask=with_ones(MASK, 1))[:, -1:],
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_static_cache_of_the_user_s_is_filled(method):
    from transformers import StaticCache

    model = prompted("llama", method)
    cache = StaticCache(config=model.config, max_cache_len=16)
    assert torch.equal(continued(model, **BATCH, past_key_values=cache), continued(model, **BATCH))


def test_use_cache_false_returns_none_with_virtual_embeddings():
    output = prompted("llama")(**BATCH, use_cache=False)
    assert output.past_key_values is None


@pytest.mark.parametrize("method", METHODS)
def test_generation_goes_on_with_what_is_new_alone_or_with_embeddings(method):
    model = prompted("llama", method)
    first = continued(model, **BATCH, new=3, return_dict_in_generate=True)
    mask, expected = with_ones(MASK, 5), None
    ids = torch.cat([first.sequences, torch.tensor([[5, 6]]).expand(3, -1)], 1)
    expected = continued(model, ids, attention_mask=mask)[:, -6:]
    # The last of what generation wrote is not in the cache.
    for inputs in ({"input_ids": ids[:, -3:]}, {"inputs_embeds": build("llama").get_input_embeddings()(ids)}):
        cache = copy.deepcopy(first.past_key_values)
        written = continued(model, **inputs, attention_mask=mask, past_key_values=cache)
        assert torch.equal(written[:, -6:], expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_without_virtual_tokens_and_embeddings_of_all(method):
    model, frozen = prompted("llama", method), build("llama")
    cache = cache_of(frozen, input_ids=IDS[:1, :2])
    embeds = frozen.get_input_embeddings()(IDS[:1])
    written = continued(model, inputs_embeds=embeds, past_key_values=copy.deepcopy(cache))
    assert torch.equal(written, continued(model, IDS[:1], past_key_values=copy.deepcopy(cache))[:, 4:])
