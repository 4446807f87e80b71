"""adapter_names=: an adapter for each row of a batch."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import MixedBatchError
from peftcore.mixed_batches import assigned_rows

from .methods import GatedConfig, PlainConfig, ScaledConfig, TurnedConfig
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

    def __init__(self, positions=None):
        super().__init__()
        self.pos = nn.Embedding(9, 6)
        self.turn = nn.Linear(6, 6)
        self.positions = positions

    def forward(self, ids):
        positions = torch.arange(ids.shape[1])[None] if self.positions is None else self.positions
        return self.head(self.lin(self.emb(ids) + self.turn(self.pos(positions))))


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


def row_by_row(model, ids, names, run=None):
    """What a mixed batch has to give: each row as if its adapter were the only one."""
    run = run or model
    active, rows = model.active_adapters, []
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(run(ids)[row])
        else:
            model.set_adapter(name)
            rows.append(run(ids)[row])
    model.set_adapter(active)
    return torch.stack(rows)


POSITIONS = {
    "deltas": PlainConfig(target_modules=["emb", "pos", "turn"]),
    "a dependent delta": ScaledConfig(target_modules=["pos", "turn"]),
    "a transform": TurnedConfig(target_modules=["turn"]),
    "what no weight holds": GatedConfig(target_modules=["turn"]),
    "rows": PlainConfig(target_modules=["lin"], trainable_token_indices={"pos": [0, 2]}),
    "copies": PlainConfig(target_modules=["lin"], modules_to_save=["pos", "turn"]),
    "elsewhere": PlainConfig(target_modules=["lin"]),
}
ROWS_OF_POSITIONS = [["a", "b"], ["b", "__base__"], ["__base__", "a"], ["a", "a"], ["__base__", "__base__"]]


@pytest.mark.parametrize("names", ROWS_OF_POSITIONS, ids="-".join)
@pytest.mark.parametrize("config", POSITIONS.values(), ids=POSITIONS)
def test_what_is_computed_once_stands_for_every_row(config, names):
    model = get_peft_model(Positions(), config, "a")
    model.add_adapter("b", PlainConfig(target_modules=["pos", "head"]))
    stir(model)
    same(model(IDS, adapter_names=names), row_by_row(model, IDS, names))


def test_what_is_computed_once_stands_for_rows_that_are_repeated_too():
    """As generation does it, with two beams for each row."""
    model = get_peft_model(Positions(), PlainConfig(target_modules=["pos"]), "a")
    beams = IDS.repeat_interleave(2, 0)
    with assigned_rows(model.base_model, ["a", "__base__"], generating=True):
        mixed = model.get_base_model()(beams)
    same(mixed, row_by_row(model, beams, ["a", "a", "__base__", "__base__"]))


def heights(net):
    """Note with how many rows the layer behind the positions is called."""
    found = []
    net.turn.register_forward_hook(lambda _, args, output: found.append(len(output)))
    return found


def test_it_stays_one_row_where_the_rows_do_not_differ_on_the_layer():
    net = Positions()
    model = get_peft_model(net, PlainConfig(target_modules=["emb", "pos", "turn"]), "a")
    found = heights(net)
    model(IDS, adapter_names=["a", "a"])
    assert found == [1]
    model.add_adapter("b", PlainConfig(target_modules=["emb"]))
    model.add_adapter("c", PlainConfig(target_modules=["turn"]))
    found.clear()
    model(IDS, adapter_names=["b", "__base__"])
    assert found == [1]
    found.clear()
    model(IDS, adapter_names=["b", "c"])
    assert found == [2]


def test_it_learns_from_the_rows_of_its_adapter():
    model = get_peft_model(Positions(), PlainConfig(target_modules=["pos"]), "a")
    model(IDS, adapter_names=["__base__", "a"])[1].square().sum().backward()
    part = model.get_base_model().pos.adapters["a"]
    mixed = part.plain_A.grad.clone()
    model.zero_grad()
    model(IDS)[1].square().sum().backward()
    same(mixed, part.plain_A.grad)


@pytest.mark.parametrize(
    "positions", [torch.arange(3)[:, None], torch.arange(1), torch.arange(4)], ids=["three rows", "one id", "a line"]
)
def test_another_number_is_still_refused(positions):
    net = Positions(positions)
    model = get_peft_model(net, PlainConfig(target_modules=["pos"]), "a")
    with pytest.raises(MixedBatchError, match=rf"2 names.*{len(positions)} rows"):
        model(IDS, adapter_names=["a", "__base__"])


def test_a_vector_alone_is_no_row():
    """It may be one token of many that was routed to this layer."""

    class Routes(Words):
        def forward(self, ids):
            hidden = self.emb(ids)
            hidden[0, :1] = self.lin(hidden[0, :1])
            return self.head(hidden)

    model = get_peft_model(Routes(), PlainConfig(target_modules=["lin"]), "a")
    with torch.no_grad():
        with pytest.raises(MixedBatchError, match=r"2 names.*1 rows"):
            model(IDS, adapter_names=["a", "__base__"])
        same(model(IDS, adapter_names=["a", "a"]), model(IDS))


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


@pytest.fixture
def gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5, eos_token_id=None
    )
    model = get_peft_model(GPT2LMHeadModel(config).eval(), PlainConfig(target_modules=["wpe", "c_attn"]), "a")
    model.add_adapter("b", PlainConfig(target_modules=["wpe"], r=3))
    return stir(model)


def test_positions_that_a_decoder_computes_once(gpt):
    mixed = gpt(input_ids=PROMPTS, adapter_names=ROWS).logits
    same(mixed, row_by_row(gpt, PROMPTS, ROWS, lambda ids: gpt(input_ids=ids).logits))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("mask", [True, False], ids=["masked", ""])
def test_positions_that_a_decoder_computes_once_while_it_generates(gpt, beams, use_cache, mask):
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0}
    if mask:
        options["attention_mask"] = torch.ones_like(PROMPTS)
    mixed = gpt.generate(PROMPTS, adapter_names=ROWS, **options)
    for row, name in enumerate(ROWS):
        if name == "__base__":
            with gpt.disable_adapter():
                alone = gpt.generate(PROMPTS, **options)
        else:
            gpt.set_adapter(name)
            alone = gpt.generate(PROMPTS, **options)
        assert torch.equal(mixed[row], alone[row])
