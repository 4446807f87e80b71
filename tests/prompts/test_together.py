"""Virtual embeddings, a prefix and layer adapters in one model: together, in turn, switched off, deleted."""

import pytest
import torch

from peftcore.exceptions import AdapterNameError, NotMergeableError
from peftcore.testing import Snapshot

from .models import (
    DECODERS,
    METHODS,
    TOKENS,
    build,
    config,
    continued,
    different,
    encoder,
    logits,
    lora,
    one_step_after_another,
    padded,
    prompted,
    same,
)

ALL = ["default", "prefix", "lora"]
SIDE = {"gemma3": "right"}  # a sliding window does not go with padding behind a prefix


def three(name, active=ALL):
    model = prompted(name)
    torch.manual_seed(2)
    model.add_adapter("prefix", config("prefix_tuning", 2))
    model.add_adapter("lora", lora())
    model.set_adapter(active)
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_equals_its_rows(name):
    model, side = three(name), SIDE.get(name, "left")
    output = logits(model, **padded(side))
    for row, tokens in enumerate(TOKENS):
        length = len(tokens) + 3
        found = output[row, -length:] if side == "left" else output[row, :length]
        same(found, logits(model, input_ids=torch.tensor([tokens]))[0])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_generated_is_each_row_s_and_follows_step_by_step(name, settings):
    model = three(name)
    for tokens in TOKENS:
        ids = torch.tensor([tokens])
        if "num_beams" not in settings:
            assert torch.equal(continued(model, ids, **settings), one_step_after_another(model, ids))
    if name in SIDE:
        return
    output = continued(model, **padded("left"), **settings)
    for row, tokens in enumerate(TOKENS):
        assert torch.equal(output[row, 4:], continued(model, torch.tensor([tokens]), **settings)[0, len(tokens) :])


def test_each_of_them_counts_and_the_order_of_layer_adapters_does_not():
    batch = padded("left")
    found = [
        logits(three("llama", active), **batch)[:, -4:] for active in (ALL, *(ALL[:n] + ALL[n + 1 :] for n in range(3)))
    ]
    assert all(different(one, other) for n, one in enumerate(found) for other in found[:n])
    same(logits(three("llama", ALL[::-1]), **batch)[:, -4:], found[0])


def test_two_prompts_stand_one_behind_the_other():
    model = prompted("llama")
    model.add_adapter("second", config("prompt_tuning", 2))
    ids = torch.tensor([TOKENS[0]])
    embeds = model.get_input_embeddings()(ids)
    tables = {name: encoder(model, name).prompt_embeddings for name in ("default", "second")}
    for order in (["default", "second"], ["second", "default"]):
        model.set_adapter(order)
        expected = build("llama")(inputs_embeds=torch.cat([*(tables[name][None] for name in order), embeds], 1)).logits
        same(logits(model, input_ids=ids), expected)


def test_all_train_together():
    model = three("llama").train()
    model(**padded("left"), labels=padded("left")["input_ids"]).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {
        "model",
        "prompt_encoder",
    }


# ------------------------------------------------------------------------------- switched off, deleted, seen


@pytest.mark.parametrize("method", METHODS)
def test_switched_off_the_model_is_the_frozen_one(method):
    model, frozen, batch = prompted("llama", method), build("llama"), padded("left")
    with model.disable_adapter():
        assert torch.equal(logits(model, **batch), logits(frozen, **batch))
        assert torch.equal(continued(model, **batch), continued(frozen, **batch))
        with pytest.raises(ZeroDivisionError), model.disable_adapter():
            raise ZeroDivisionError
        assert torch.equal(logits(model, **batch), logits(frozen, **batch))
    assert different(logits(model, **batch)[:, -4:], logits(frozen, **batch))


@pytest.mark.parametrize("method", METHODS)
def test_the_user_s_model_called_directly_has_no_virtual_tokens(method):
    model, batch = prompted("llama", method), padded("left")
    assert torch.equal(logits(model.get_base_model(), **batch), logits(build("llama"), **batch))


@pytest.mark.parametrize("leave", ["unload", "delete_adapter"])
@pytest.mark.parametrize("method", METHODS)
def test_taken_out_nothing_is_left(method, leave):
    from peftcore import get_peft_model

    plain = build("llama")
    before = Snapshot.of(plain)
    model = get_peft_model(plain, config(method))
    logits(model, **padded("left"))
    continued(model, **padded("left"))
    model.unload() if leave == "unload" else model.delete_adapter("default")
    before.assert_same(plain, leave, "Does a hook stay?")
    same(logits(model if leave != "unload" else plain, **padded("left")), logits(build("llama"), **padded("left")))


def test_deleting_one_leaves_the_others():
    model, batch = three("llama"), padded("left")
    expected = logits(three("llama", ["default", "lora"]), **batch)
    model.delete_adapter("prefix")
    assert model.active_adapters == ["default", "lora"]
    same(logits(model, **batch), expected)
    model.delete_adapter("default")
    assert logits(model, **batch).shape[1] == 4
    assert not [name for name in model.state_dict() if "prompt" in name]


def test_switching_goes_there_and_back():
    model, batch = three("llama", ["default"]), padded("left")
    expected = {name: logits(three("llama", [name]), **batch) for name in ALL}
    for name in (*ALL, *reversed(ALL)):
        model.set_adapter(name)
        assert torch.equal(logits(model, **batch), expected[name])
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trains and all((name in n) if name != "lora" else ("lora_" in n) for n in trains)
    with pytest.raises(AdapterNameError, match="'other'"):
        model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default"]


def test_what_can_be_seen():
    model = three("llama", ["default", "lora"])
    status = model.get_model_status()
    assert status.active_adapters == ["default", "lora"] and status.available_adapters == sorted(ALL)
    assert status.peft_types == {"default": "PROMPT_TUNING", "prefix": "PREFIX_TUNING", "lora": "LORA"}
    assert status.requires_grad == {"default": True, "prefix": False, "lora": True}
    assert status.enabled is True and status.devices["prefix"] == ["cpu"]
    assert {name for layer in model.get_layer_status() for name in layer.available_adapters} == {"lora"}
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
    alone = prompted("llama")
    assert alone.get_nb_trainable_parameters()[0] == 3 * 16
    assert alone.get_layer_status() == []


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_can_t_be_merged_but_its_neighbour_can(method):
    model = prompted("llama", method)
    model.add_adapter("lora", lora())
    model.set_adapter(["default", "lora"])
    batch = padded("left")
    expected = logits(model, **batch)
    with pytest.raises(NotMergeableError, match=f"'default' \\({method}\\) changes the model's inputs"):
        model.merge_adapter()
    with pytest.raises(NotMergeableError):
        model.merge_and_unload()
    model.merge_adapter(["lora"])
    same(logits(model, **batch), expected)
    model.unmerge_adapter()
    same(logits(model, **batch), expected)
