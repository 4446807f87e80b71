"""adapter_names=: an adapter for each row of a batch."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import MixedBatchError

from .methods import GatedConfig, PlainConfig, TurnedConfig
from .models import Net, Words, anatomy, same, stir

X = torch.linspace(-1, 1, 20).reshape(4, 5)
IDS = torch.arange(8).reshape(2, 4)


@pytest.fixture
def model():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one", "two"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["one"]))
    return model


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a"] * 3, "3 names.*4 rows"),
        (["a"] * 5, "5 names.*4 rows"),
        ([], "0 names, but the batch has 4 rows"),
        (["a", "b", "c", "a"], "'c'.*'__base__', 'a', 'b'"),
        ("aaaa", "list.*'aaaa'"),
    ],
    ids=repr,
)
def test_names_that_do_not_fit(model, names, problem):
    before, expected = anatomy(model), model(X)
    with pytest.raises(MixedBatchError, match=problem):
        model(X, adapter_names=names)
    assert anatomy(model)["hooks"] == before["hooks"]
    assert torch.equal(model(X), expected)


def test_what_is_active_does_not_count(model):
    rows = ["b", "a", "__base__", "a"]
    expected = model(X, adapter_names=rows)
    model.set_adapter("b")
    same(model(X, adapter_names=rows), expected)
    model.set_adapter([])
    same(model(X, adapter_names=rows), expected)


def test_one_adapter_for_all_rows(model):
    same(model(X, adapter_names=["a"] * 4), model(X))
    with model.disable_adapter():
        frozen = model(X)
    same(model(X, adapter_names=["__base__"] * 4), frozen)


def test_not_while_merged(model):
    model.merge_adapter()
    with pytest.raises(MixedBatchError, match="unmerge_adapter"):
        model(X, adapter_names=["a", "b", "a", "a"])
    model.unmerge_adapter()
    model(X, adapter_names=["a", "b", "a", "a"])


def test_an_exception_inside_leaves_nothing_behind(model):
    expected, hooks = model(X), anatomy(model)["hooks"]
    handle = model.get_base_model().two.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(X, adapter_names=["a", "b", "__base__", "a"])
    handle.remove()
    assert anatomy(model)["hooks"] == hooks
    assert model.base_model.call_state.rows is None
    assert torch.equal(model(X), expected)


def test_each_adapter_learns_from_its_own_rows(model):
    model.set_adapter(["a", "b"])
    model(X, adapter_names=["a", "b", "__base__", "b"]).square().sum().backward()
    mixed = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.set_adapter("a")
    model(X[:1]).square().sum().backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.set_adapter("b")
    model(X[[1, 3]]).square().sum().backward()
    alone.update({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert alone.keys() == mixed.keys()
    for name in alone:
        same(mixed[name], alone[name])


class Flattens(Words):
    """Flattens batch and length into one dimension, as mixtures of experts do."""

    def forward(self, ids):
        hidden = self.emb(ids)
        flat = self.lin(hidden.reshape(-1, hidden.shape[-1]))
        return self.head(flat.reshape(hidden.shape))


class Positions(Words):
    """Adds something that is computed once for all rows."""

    def __init__(self):
        super().__init__()
        self.pos = nn.Embedding(9, 6)

    def forward(self, ids):
        return self.head(self.lin(self.emb(ids) + self.pos(torch.arange(ids.shape[1])[None])))


class Steps(Words):
    """Is called with another tensor in front of the batch."""

    def forward(self, steps, ids):
        return self.head(self.lin(self.emb(ids))) + steps.sum()


def test_rows_that_a_model_flattens():
    model = get_peft_model(Flattens(), PlainConfig(target_modules=["emb", "lin"]), "a")
    model.add_adapter("b", GatedConfig(target_modules=["lin"]))
    a = model(IDS)
    model.set_adapter("b")
    b = model(IDS)
    same(model(IDS, adapter_names=["b", "a"]), torch.stack([b[0], a[1]]))
    with model.disable_adapter():
        frozen = model(IDS)
    same(model(IDS, adapter_names=["__base__", "a"]), torch.stack([frozen[0], a[1]]))


def test_what_is_computed_once_for_all_rows_can_not_be_told_apart():
    model = get_peft_model(Positions(), PlainConfig(target_modules=["emb", "pos"]), "a")
    with pytest.raises(MixedBatchError, match=r"2 names.*1 rows"):
        model(IDS, adapter_names=["a", "__base__"])
    model = get_peft_model(Positions(), PlainConfig(target_modules=["emb"]), "a")
    a = model(IDS)
    same(model(IDS, adapter_names=["a", "__base__"])[0], a[0])


@pytest.mark.parametrize("order", [["steps", "ids"], ["ids", "steps"]], ids="-".join)
def test_other_tensors_may_come_before_the_batch(order):
    model = get_peft_model(Steps(), PlainConfig(target_modules=["lin"]))
    inputs = {"steps": torch.arange(7.0), "ids": IDS}
    inputs = {name: inputs[name] for name in order}
    expected = model(**inputs)
    with model.disable_adapter():
        frozen = model(**inputs)
    same(model(**inputs, adapter_names=["default", "__base__"]), torch.stack([expected[0], frozen[1]]))


# -------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapted_llama(llama):
    model = get_peft_model(llama, PlainConfig(target_modules=["q_proj", "v_proj", "down_proj"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["o_proj", "up_proj"]))
    yield stir(model, "a", "b")
    model.unload()


PROMPTS = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
ROWS = ["b", "__base__", "a"]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation(adapted_llama, beams, use_cache):
    model = adapted_llama
    options = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "use_cache": use_cache}
    options["attention_mask"] = torch.ones_like(PROMPTS)
    mixed = model.generate(PROMPTS, adapter_names=ROWS, **options)
    alone = {}
    for name in ("a", "b"):
        model.set_adapter(name)
        alone[name] = model.generate(PROMPTS, **options)
    with model.disable_adapter():
        alone["__base__"] = model.generate(PROMPTS, **options)
    assert len({tuple(sequence.tolist()) for sequence in mixed}) == 3, "the adapters do not tell the rows apart"
    for row, name in enumerate(ROWS):
        assert torch.equal(mixed[row], alone[name][row])


def test_generation_with_too_few_names(adapted_llama):
    with pytest.raises(MixedBatchError, match=r"2 names.*3 rows"):
        adapted_llama.generate(PROMPTS, adapter_names=["a", "b"], max_new_tokens=2)
    assert not adapted_llama.get_base_model()._forward_pre_hooks


def test_encoder_and_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        eos_token_id=None,
    )
    model = get_peft_model(T5ForConditionalGeneration(config).eval(), PlainConfig(target_modules=["q", "v", "wo"]), "a")
    with torch.no_grad():
        for p in model.base_model.tuner("a").parameters():
            p.mul_(8)
    options = {"max_new_tokens": 5, "num_beams": 2, "do_sample": False}
    mixed = model.generate(input_ids=PROMPTS, adapter_names=["a", "__base__", "a"], **options)
    a = model.generate(input_ids=PROMPTS, **options)
    with model.disable_adapter():
        frozen = model.generate(input_ids=PROMPTS, **options)
    assert torch.equal(mixed[0], a[0])
    assert torch.equal(mixed[1], frozen[1])
    labels = torch.tensor([[1, 2], [1, 2], [1, 2]])
    logits = model(input_ids=PROMPTS, labels=labels, adapter_names=["a", "__base__", "a"]).logits
    same(logits[0], model(input_ids=PROMPTS, labels=labels).logits[0])
