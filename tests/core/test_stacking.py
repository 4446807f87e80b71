"""Adapters of different rows, stacked: the same as row by row, whatever has changed since they were stacked."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import (
    LayerConfig,
    PeftMethod,
    get_peft_model,
    option,
    register_peft_method,
    stacking,
    unregister_peft_method,
)
from peftcore.adapters.delta import ThinFactors
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.adapters.scale import OutputScale

from .methods import PlainConfig, ScaledConfig
from .models import Single, differs, same

X = torch.linspace(-1, 1, 20).reshape(4, 5)
NAMES = ["c", "a", "b", "a"]


class ThinConfig(LayerConfig, method="thin"):
    r: int = option(2, "Rank.", at_least=1)
    dropout: float = option(0.0, "Dropout.")


class ThinAdapter(LowRankDelta):
    """Δ = scaling · B A, of parameters that the stack can be made of."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scaling = 0.5 * config.r
        self.thin_dropout = nn.Dropout(config.dropout)
        self.thin_A = nn.Parameter(torch.randn(config.r, base.in_features))
        self.thin_B = nn.Parameter(torch.randn(base.out_features, config.r))

    def factors(self):
        return self.thin_A, self.thin_B * self.scaling

    def thin_factors(self):
        return ThinFactors(self.thin_A, self.thin_B, self.scaling)

    def thin_places(self):
        return [(self.__dict__, "scaling"), (self._parameters, "thin_A"), (self._parameters, "thin_B")]

    def entering(self, x):
        return self.thin_dropout(x)


class VectorConfig(LayerConfig, method="vector"):
    sort: str = option("out", "What it does.")


class VectorAdapter(OutputScale):
    """A factor for each output, or for each input, or a shift."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.sort = config.sort
        self.vector_v = nn.Parameter(torch.randn(base.in_features if config.sort == "in" else base.out_features))

    def output_factors(self):
        return self.vector_v if self.sort == "out" else None

    def input_factors(self):
        return self.vector_v if self.sort == "in" else None

    def shift(self):
        return self.vector_v if self.sort == "shift" else None


class AskedConfig(ThinConfig, method="asked"):
    pass


class AskedAdapter(ThinAdapter):
    """The same, of which the core has to ask for the factors in each call."""

    def thin_places(self):
        return ()


METHODS = [
    PeftMethod(name="asked", config_cls=AskedConfig, adapter_cls=AskedAdapter),
    PeftMethod(name="thin", config_cls=ThinConfig, adapter_cls=ThinAdapter),
    PeftMethod(name="vector", config_cls=VectorConfig, adapter_cls=VectorAdapter),
]


@pytest.fixture(autouse=True, scope="module")
def methods():
    for method in METHODS:
        register_peft_method(method)
    yield
    for method in METHODS:
        unregister_peft_method(method.name)


def adapted(configs, layer=None):
    """Return a model with adapters a, b, c … of these configs."""
    names = [chr(ord("a") + number) for number in range(len(configs))]
    model = get_peft_model(Single(layer or nn.Linear(5, 6)), configs[0], names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    return model.eval()


def thin(r=2, **fields):
    return ThinConfig(target_modules=["layer"], r=r, **fields)


def vector(sort):
    return VectorConfig(target_modules=["layer"], sort=sort)


def asked(r):
    return AskedConfig(target_modules=["layer"], r=r)


@pytest.fixture(params=[thin, asked], ids=["by_places", "asked"])
def model(request):
    return adapted([request.param(2), request.param(2), request.param(3)])


def row_by_row(model, x, names):
    with torch.no_grad():
        rows = []
        for row, name in zip(x, names, strict=True):
            model.set_adapter([] if name == "__base__" else name)
            rows.append(model(row[None])[0])
        return torch.stack(rows)


@torch.no_grad()
def mixed(model, x=X, names=NAMES):
    """Return the outputs of three calls that follow each other: the first marks, the second stacks, the third has."""
    outputs = [model(x, adapter_names=names) for _ in range(3)]
    same(outputs[1], outputs[0])
    same(outputs[2], outputs[0])
    return outputs[2]


def kept(model):
    """Return the stacks of the model's one layer."""
    found = model.base_model.model.layer._stacks
    return [] if found is None or found._kept is None else found._kept.piles.stacks


KINDS = st.one_of(
    st.integers(1, 9).map(thin),
    st.sampled_from(["out", "in", "shift"]).map(vector),
    st.sampled_from([PlainConfig(target_modules=["layer"]), ScaledConfig(target_modules=["layer"])]),
)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_methods_for_any_rows_are_as_row_by_row(data):
    model = adapted(data.draw(st.lists(KINDS, min_size=2, max_size=6)))
    known = [*model.peft_config, "__base__"]
    names = data.draw(st.lists(st.sampled_from(known), min_size=2, max_size=9))
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 2), (stacking.FEW + 1,)]))
    x = torch.randn(len(names), *shape, 5)
    torch.testing.assert_close(mixed(model, x, names), row_by_row(model, x, names), atol=1e-5, rtol=1e-5)


def test_in_double_precision_they_are_equal_to_the_last_places():
    model = adapted([thin(2), thin(2), thin(3)]).double()
    x = X.double()
    torch.testing.assert_close(mixed(model, x), row_by_row(model, x, NAMES), atol=1e-12, rtol=1e-12)


def test_ranks_of_one_size_are_stacked_together_and_others_apart():
    model = adapted([thin(2), thin(3), thin(8), thin(9), thin(40)])
    x = torch.randn(5, 5)
    mixed(model, x, list("abcde"))
    assert sorted((len(stack.names), stack.a.shape[2]) for stack in kept(model)) == [(2, 3), (2, 9)]


def part(model, name="a"):
    return model.base_model.model.layer.adapters[name]


def replaced(model):
    part(model).thin_A = nn.Parameter(torch.randn(2, 5))


def given_other_memory(model):
    part(model).thin_B.data = torch.randn(6, 2)


def given_other_memory_twice(model):
    for _ in range(2):
        part(model).thin_B.data = part(model).thin_B.data * 3 + 1


def cut_off(model):
    part(model, "c").thin_A.data = part(model, "c").thin_A.data[:2]
    part(model, "c").thin_B.data = part(model, "c").thin_B.data[:, :2]


@torch.no_grad()
def written_to(model):
    part(model).thin_A.add_(1)


@torch.no_grad()
def written_to_behind(model):
    part(model).thin_B.mul_(2)


def exchanged(model):
    adapters = model.base_model.model.layer.adapters
    adapters["a"], adapters["b"] = adapters["b"], adapters["a"]


def scaled(model):
    part(model).scaling = 7.0


def cast_to_and_fro(model):
    model.to(torch.bfloat16).to(torch.float32)


def deleted_and_added(model):
    model.delete_adapter("a")
    model.add_adapter("a", thin(2))
    model.eval()


def another_method(model):
    model.delete_adapter("a")
    model.add_adapter("a", ScaledConfig(target_modules=["layer"]))


CHANGES = [
    replaced,
    given_other_memory,
    given_other_memory_twice,
    cut_off,
    written_to,
    written_to_behind,
    exchanged,
    scaled,
    cast_to_and_fro,
    deleted_and_added,
    another_method,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_noticed(model, change):
    before = mixed(model)
    assert len(kept(model)) == 1
    change(model)
    with torch.no_grad():
        after = model(X, adapter_names=NAMES)
    differs(after, before) if change is not cast_to_and_fro else None
    torch.testing.assert_close(after, row_by_row(model, X, NAMES), atol=1e-6, rtol=1e-6)
    same(mixed(model), after)


def test_the_same_adapters_under_other_names(model):
    model.add_adapter("d", thin(2))
    model.eval()
    mixed(model)
    adapters = model.base_model.model.layer.adapters
    adapters["d"], adapters["c"], adapters["b"] = adapters["c"], adapters["b"], adapters["a"]
    names = ["c", "d", "b", "c"]
    same(mixed(model, names=names), row_by_row(model, X, names))


def on(*layers):
    return ThinConfig(target_modules=list(layers))


def test_an_adapter_that_comes_to_a_layer_later_acts():
    model = get_peft_model(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 6)), on("0", "1"), "a")
    model.add_adapter("b", on("0", "1"))
    model.add_adapter("c", on("0"))
    before = mixed(model.eval())
    model.delete_adapter("c")
    model.add_adapter("c", on("1"))
    after = mixed(model.eval())
    differs(after, before)
    torch.testing.assert_close(after, row_by_row(model, X, NAMES), atol=1e-6, rtol=1e-6)


def test_factors_are_not_asked_for_again_while_nothing_changes(monkeypatch):
    model = adapted([thin(2), thin(2), thin(3)])
    before, asked_for = mixed(model), []
    monkeypatch.setattr(ThinAdapter, "thin_factors", lambda self: asked_for.append(self))
    with torch.no_grad():
        same(model(X, adapter_names=NAMES), before)
        same(model(X[[1, 0, 2, 3]], adapter_names=["a", "c", "b", "a"]), before[[1, 0, 2, 3]])
    assert not asked_for


def test_merging_and_unmerging_between(model):
    before = mixed(model)
    model.set_adapter("a")
    model.merge_adapter()
    model.unmerge_adapter()
    same(mixed(model), before)


def test_another_order_of_the_same_adapters_uses_the_same_stack(model):
    mixed(model)
    (stack,) = kept(model)
    names = ["b", "c", "a", "a"]
    same(mixed(model, names=names), row_by_row(model, X, names))
    assert kept(model)[0] is stack


def test_many_positions_in_between_leave_the_stack_and_do_not_use_it(model, monkeypatch):
    mixed(model)
    (stack,) = kept(model)
    used, add = [], stacking.Stack.add
    monkeypatch.setattr(stacking.Stack, "add", lambda *args, **owned: used.append(1) or add(*args, **owned))
    mixed(model, torch.randn(4, stacking.FEW + 1, 5))
    assert not used
    mixed(model, torch.randn(2 * stacking.FEW + 2, 5), ["a", "b"] * (stacking.FEW + 1))
    assert not used
    mixed(model)
    assert used
    assert kept(model)[0] is stack


def test_it_is_no_state_and_copies_have_none(model):
    keys, before = list(model.state_dict()), mixed(model)
    assert kept(model)
    assert list(model.state_dict()) == keys
    layer = model.base_model.model.layer
    assert pickle.loads(pickle.dumps(layer._stacks))._kept is None
    copied = copy.deepcopy(model)
    assert kept(copied) == []
    same(mixed(copied), before)
    assert kept(copied)[0].a.data_ptr() != kept(model)[0].a.data_ptr()


def test_a_deleted_adapter_is_freed(model):
    mixed(model)
    gone, memory = weakref.ref(part(model)), weakref.ref(kept(model)[0].a)
    model.delete_adapter("a")
    gc.collect()
    assert gone() is None
    assert memory() is None


def test_what_is_moved_or_cast_leaves_no_copy_behind(model):
    mixed(model)
    memory = weakref.ref(kept(model)[0].a)
    model.to(torch.float64)
    gc.collect()
    assert memory() is None


def test_dropout_that_is_switched_on_acts():
    model = adapted([thin(2, dropout=0.5), thin(2)])
    x = torch.ones(2, 5)
    mixed(model, x, ["a", "b"])
    assert kept(model)
    part(model).thin_dropout.train()  # alone, as for estimates of uncertainty
    with torch.no_grad():
        assert len({tuple(model(x, adapter_names=["a", "b"])[0].tolist()) for _ in range(20)}) > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_derivatives_reach_the_factors(model):
    mixed(model)
    name = "base_model.model.layer.adapters.a.thin_A"
    weights = dict(model.named_parameters())
    others = {key: value.detach() for key, value in weights.items() if key != name}

    def outputs(a):
        given = {**others, name: a}
        return [torch.func.functional_call(model, given, (X,), {"adapter_names": NAMES}) for _ in range(3)][-1]

    direction = torch.ones(2, 5)
    with torch.no_grad():
        _, found = torch.func.jvp(outputs, (weights[name].detach(),), (direction,))
        change = outputs(weights[name] + direction) - outputs(weights[name])  # it is linear in A
    torch.testing.assert_close(found, change, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_transform_leaves_nothing_behind(model):
    mixed(model)
    (stack,) = kept(model)

    @torch.no_grad()
    def outputs(factor):
        return sum(model(factor * X, adapter_names=NAMES) for _ in range(3))

    part(model).thin_A = nn.Parameter(part(model).thin_A.detach().clone())
    torch.func.vmap(outputs)(torch.arange(3.0))
    assert kept(model)[0] is stack


def test_in_training_dropout_acts():
    model = adapted([thin(2, dropout=0.5), thin(2)])
    model.train()
    x = torch.ones(2, 5)
    with torch.no_grad():
        first, second = (model(x, adapter_names=["a", "b"]) for _ in range(2))
        assert kept(model) == []
        assert not torch.equal(first[0], second[0])
        same(first[1], second[1])
    model.eval()
    same(mixed(model, x, ["a", "b"]), row_by_row(model, x, ["a", "b"]))


@pytest.mark.parametrize("anew", [True, False])
def test_gradients_reach_each_adapter_from_its_own_rows(model, monkeypatch, anew):
    monkeypatch.setattr(stacking, "_pays_for_one_call", lambda x: anew)
    mixed(model)
    weights = torch.randn(4, 6)
    for name in "abc":
        part(model, name).requires_grad_(True)
    x = X.clone().requires_grad_(True)
    (model(x, adapter_names=NAMES) * weights).sum().backward()
    for name in "abc":
        rows = torch.tensor([other == name for other in NAMES])
        a, b = part(model, name).thin_A.detach(), part(model, name).thin_B.detach()
        s = part(model, name).scaling
        same(part(model, name).thin_B.grad, s * weights[rows].T @ (X[rows] @ a.T))
        same(part(model, name).thin_A.grad, s * (weights[rows] @ b).T @ X[rows])
    assert x.grad is not None


def test_gradients_of_the_input_go_through_a_kept_stack(model):
    mixed(model)
    for name in "abc":
        part(model, name).requires_grad_(False)
    x = X.clone().requires_grad_(True)
    model(x, adapter_names=NAMES).sum().backward()
    assert kept(model)
    for row, name in enumerate(NAMES):
        model.set_adapter(name)
        alone = X[row][None].clone().requires_grad_(True)
        model(alone).sum().backward()
        same(x.grad[row], alone.grad[0])


def test_a_stack_made_in_inference_mode_serves_outside(model):
    with torch.inference_mode():
        expected = [model(X, adapter_names=NAMES) for _ in range(3)][-1].clone()
    for name in "abc":
        part(model, name).requires_grad_(False)
    assert kept(model)
    x = X.clone().requires_grad_(True)
    outputs = model(x, adapter_names=NAMES)
    same(outputs, expected)
    outputs.sum().backward()
    assert x.grad is not None


def test_tensors_made_in_inference_mode_are_not_kept():
    with torch.inference_mode():
        model = adapted([thin(2), thin(2)])
        before = mixed(model, X[:2], ["a", "b"])
        assert kept(model) == []
        part(model).thin_A.add_(1)
        differs(mixed(model, X[:2], ["a", "b"]), before)


def test_what_a_hook_has_seen_of_the_frozen_layer_stays(model):
    seen = []
    model.base_model.model.layer.base_layer.register_forward_hook(lambda *args: seen.append(args[2]))
    mixed(model, torch.randn(4, stacking.FEW + 1, 5))
    mixed(model)
    frozen = model.base_model.model.layer.base_layer
    assert torch.equal(seen[-1], nn.functional.linear(X, frozen.weight, frozen.bias))


def test_vectors_of_rows_on_a_convolution():
    model = adapted([vector("out"), vector("shift"), PlainConfig(target_modules=["layer"])], nn.Conv1d(5, 6, 3))
    names, x = ["b", "__base__", "a", "c"], torch.randn(4, 5, 9)
    same(mixed(model, x, names), row_by_row(model, x, names))


def test_the_frozen_layer_runs_once(model):
    calls = []
    model.base_model.model.layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
    model.add_adapter("v", vector("in"))
    with torch.no_grad():
        model(X, adapter_names=["a", "v", "b", "__base__"])
    assert len(calls) == 1


def test_generation_uses_one_stack_in_all_steps(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.5, pad_token_id=0, eos_token_id=None))
    model = get_peft_model(llama.eval(), ThinConfig(target_modules=["q_proj"]), "a")
    model.add_adapter("b", ThinConfig(target_modules=["q_proj"], r=3))
    model.eval()
    prompts = torch.tensor([[5, 6, 7]] * 3)
    names = ["b", "__base__", "a"]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompts)}

    positions, stacks, add = [], [], stacking.Stack.add

    def noted(stack, output, x, places, *, owned):
        positions.append(x.shape[1])
        stacks.append(stack)
        return add(stack, output, x, places, owned=owned)

    monkeypatch.setattr(stacking.Stack, "add", noted)
    generated = model.generate(prompts, adapter_names=names, **options)
    # The prompt is what is seen first; from then on the stack of each layer serves all steps, one position each.
    assert positions == [1] * 2 * 5
    assert len({id(stack) for stack in stacks}) == 2
    for row, name in enumerate(names):
        model.set_adapter([] if name == "__base__" else name)
        assert torch.equal(generated[row], model.generate(prompts, **options)[row])
