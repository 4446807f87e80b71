"""What a model is called with: masks, positions, token types, embeddings for ids, and what nobody has declared."""

import inspect

import pytest
import torch
from torch import nn

from peftcore import register_peft_method, unregister_peft_method
from peftcore.config import option
from peftcore.exceptions import TaskError
from peftcore.method import PeftMethod
from peftcore.prompts import EmbeddingTable, PromptConfig

from .models import DECODERS, METHODS, build, config, continued, different, logits, lora, padded, prompted, same

BATCH = padded("left")
IDS, MASK = BATCH["input_ids"], BATCH["attention_mask"]
CASES = [pytest.param(name, method, id=f"{method}-{name}") for method in METHODS for name in DECODERS]
TRIANGLE = torch.ones(3, 1, 4, 4).tril().bool()


def as_numbers(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_missing_mask_shows_everything(name, method):
    model = prompted(name, method)
    same(logits(model, input_ids=IDS), logits(model, input_ids=IDS, attention_mask=torch.ones_like(IDS)))


@pytest.mark.parametrize("kind", ["bool", "numbers"])
@pytest.mark.parametrize(("name", "method"), [case for case in CASES if case.values[0] in ("llama", "gpt2")])
def test_a_mask_for_each_pair_of_tokens(name, method, kind):
    """With a sliding window, what such a mask shows is seen wherever it is; Bloom and OPT take none."""
    model = prompted(name, method)
    as_kind = as_numbers if kind == "numbers" else (lambda mask: mask)
    same(logits(model, input_ids=IDS, attention_mask=as_kind(TRIANGLE)), logits(model, input_ids=IDS))
    # The last token does not see the second: virtual tokens have a column each.
    hole = TRIANGLE.clone()
    hole[:, :, 3, 1] = False
    output = logits(model, input_ids=IDS, attention_mask=as_kind(hole))
    same(output[:, :-1], logits(model, input_ids=IDS)[:, :-1])
    assert different(output[:, -1], logits(model, input_ids=IDS)[:, -1])


@pytest.mark.parametrize("method", METHODS)
def test_such_a_mask_of_an_encoder_shows_virtual_tokens_to_all(method):
    model = prompted("bert", method, task_type="SEQ_CLS")
    every = torch.ones(3, 1, 4, 4, dtype=torch.bool)
    same(logits(model, input_ids=IDS, attention_mask=every), logits(model, input_ids=IDS))
    same(logits(model, input_ids=IDS, attention_mask=as_numbers(every)), logits(model, input_ids=IDS))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("method", METHODS)
def test_positions_given_are_shifted_behind_the_virtual_tokens(name, method):
    model = prompted(name, method)
    plain = torch.arange(4)[None]
    same(logits(model, input_ids=IDS, position_ids=plain), logits(model, input_ids=IDS))
    same(logits(model, input_ids=IDS, position_ids=plain.expand(3, -1)), logits(model, input_ids=IDS))
    row = {"input_ids": IDS[1:2], "attention_mask": MASK[1:2]}
    same(logits(model, **row, position_ids=torch.tensor([[1, 0, 1, 2]]))[:, -3:], logits(model, **row)[:, -3:])
    far = logits(model, input_ids=IDS, position_ids=torch.tensor([[0, 1, 2, 9]]))
    assert different(far[:, -1], logits(model, input_ids=IDS)[:, -1])


@pytest.mark.parametrize("method", METHODS)
def test_positions_of_more_dimensions_are_refused(method):
    with pytest.raises(TaskError, match=r"position_ids of two dimensions.*\[3, 3, 4\]"):
        prompted("llama", method)(input_ids=IDS, position_ids=torch.zeros(3, 3, 4, dtype=torch.long))


@pytest.mark.parametrize("method", METHODS)
def test_token_types_are_those_of_the_tokens(method):
    model = prompted("bert", method, task_type="SEQ_CLS")
    types = torch.tensor([[0, 0, 1, 1]]).expand(3, -1)
    same(logits(model, **padded("right"), token_type_ids=torch.zeros_like(types)), logits(model, **padded("right")))
    output = logits(model, **padded("right"), token_type_ids=types)
    assert different(output, logits(model, **padded("right")))
    row = logits(model, input_ids=torch.tensor([[7, 8, 9]]), token_type_ids=torch.tensor([[0, 0, 1]]))
    same(output[1], row[0])


@pytest.mark.parametrize(("name", "method"), CASES)
def test_embeddings_instead_of_ids(name, method):
    model = prompted(name, method)
    embeds = build(name).get_input_embeddings()(IDS)
    same(logits(model, inputs_embeds=embeds, attention_mask=MASK), logits(model, **BATCH))
    same(logits(model, inputs_embeds=embeds), logits(model, input_ids=IDS))
    for settings in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
        written = continued(model, inputs_embeds=embeds, attention_mask=MASK, **settings)
        assert torch.equal(written, continued(model, **BATCH, **settings)[:, 4:])
    frozen = build(name)
    lengths = {continued(m, inputs_embeds=embeds, new=None, max_length=9).shape for m in (model, frozen)}
    assert len(lengths) == 1


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_instead_of_ids_in_an_encoder(method):
    model = prompted("bert", method, task_type="SEQ_CLS")
    embeds = build("bert").get_input_embeddings()(IDS)
    same(logits(model, inputs_embeds=embeds, attention_mask=MASK), logits(model, **BATCH))


def test_what_is_given_is_not_changed():
    for method in METHODS:
        model = prompted("gpt2", method)
        given = {**BATCH, "labels": IDS.clone(), "position_ids": torch.arange(4)[None]}
        before = {key: value.clone() for key, value in given.items()}
        model(**given)
        assert all(torch.equal(given[key], before[key]) for key in before)


def test_arguments_by_place_are_those_of_the_model():
    for method in METHODS:
        model = prompted("llama", method)
        same(model(IDS, MASK).logits, logits(model, **BATCH))
        assert torch.equal(continued(model, IDS, attention_mask=MASK), continued(model, **BATCH))
        assert torch.equal(continued(model, inputs=IDS, attention_mask=MASK), continued(model, **BATCH))


def test_hidden_states_are_those_of_virtual_tokens_too():
    for method, length in zip(METHODS, (7, 4), strict=True):
        output = prompted("llama", method)(**BATCH, output_hidden_states=True)
        assert {state.shape for state in output.hidden_states} == {(3, length, 16)}


# --------------------------------------------------------------------------- declared and undeclared arguments


class Chosen(EmbeddingTable):
    """Each row chooses among two tables by an argument of its own."""

    call_arguments = frozenset({"choice"})

    def __init__(self, config, sizes, model):
        super().__init__(config, sizes, model, table=torch.randn(2 * config.num_virtual_tokens, sizes.token_dim))

    def embeddings(self, batch):
        tables = self.table().reshape(2, -1, self.sizes.token_dim)
        return tables[batch.argument("choice", "chosen")]


class ChosenConfig(PromptConfig, method="chosen"):
    extra: int = option(0, "Nothing.")


@pytest.fixture
def chosen():
    register_peft_method(PeftMethod(name="chosen", config_cls=ChosenConfig, encoder_cls=Chosen))
    yield prompted("llama", "chosen")
    unregister_peft_method("chosen")


class Strict(nn.Module):
    """A model that takes what it knows, and notes what it gets."""

    def __init__(self):
        super().__init__()
        self.inner = build("llama")
        self.config = self.inner.config
        self.got = {}

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids=None, attention_mask=None, temperature=None):
        self.got = {"temperature": temperature}
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def test_a_declared_argument_reaches_the_method_by_rows(chosen):
    choice = torch.tensor([0, 1, 1])
    output = logits(chosen, **BATCH, choice=choice)
    for row in range(3):
        own = {key: value[row : row + 1] for key, value in BATCH.items()}
        same(output[row], logits(chosen, **own, choice=choice[row : row + 1])[0])
    assert different(output, logits(chosen, **BATCH, choice=1 - choice))
    written = continued(chosen, **BATCH, choice=choice)
    for row in range(3):
        own = {key: value[row : row + 1] for key, value in BATCH.items()}
        assert torch.equal(written[row], continued(chosen, **own, choice=choice[row : row + 1])[0])


def test_a_declared_argument_that_is_missing_is_named(chosen):
    for ask in (logits, continued):
        with pytest.raises(TaskError, match="chosen needs choice="):
            ask(chosen, **BATCH)
    with chosen.disable_adapter():
        same(logits(chosen, **BATCH, choice=torch.zeros(3)), logits(build("llama"), **BATCH))


def test_a_declared_argument_goes_with_the_rows_of_a_mixed_batch(chosen):
    chosen.add_adapter("lora", lora())
    chosen.add_adapter("plain", config("prompt_tuning", 2))
    choice = torch.tensor([0, 0, 1])
    output = logits(chosen, **BATCH, choice=choice, adapter_names=["plain", "lora", "default"])
    alone = logits(chosen, input_ids=IDS[2:, 2:], choice=choice[2:])
    same(output[2, -5:], alone[0])


def test_an_undeclared_argument_reaches_the_model():
    from peftcore import get_peft_model

    strict = Strict()
    model = get_peft_model(strict, config("prompt_tuning"))
    model(**BATCH, temperature=3)
    assert strict.got == {"temperature": 3}
    with pytest.raises(TypeError, match="choice"):
        model(**BATCH, choice=1)
    with pytest.raises(ValueError, match="model_kwargs"):
        continued(prompted("llama"), **BATCH, choice=1)


def test_the_signature_is_the_model_s():
    for method in METHODS:
        names = inspect.signature(prompted("llama", method).forward).parameters
        assert {"input_ids", "labels"} <= set(names)


@pytest.mark.parametrize("method", METHODS)
def test_more_tokens_than_positions_are_refused(method):
    model = prompted("gpt2", method)
    ids = torch.ones(1, 30, dtype=torch.long)
    with pytest.raises(TaskError, match=r"30 tokens and 3 virtual .* 32 positions"):
        model(input_ids=ids)
    with pytest.raises(TaskError, match=r"30 tokens and 3 virtual .* 32 positions"):
        continued(model, ids)
    assert torch.isfinite(logits(model, input_ids=ids[:, :29])).all()
    assert torch.isfinite(logits(prompted("llama", method), input_ids=ids)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_call_without_tensors_is_refused(method):
    with pytest.raises(TaskError, match="pass input_ids"):
        prompted("llama", method)()
