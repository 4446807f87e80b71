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


METHODS = [
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


@pytest.fixture
def model():
    return adapted([thin(2), thin(2), thin(3)])


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
    return [] if found is None or found._kept is None or found._kept.piles is None else found._kept.piles.stacks


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
    assert sorted(tuple(stack.a.shape[:2]) for _, stack in kept(model)) == [(2, 3), (2, 9)]


def part(model, name="a"):
    return model.base_model.model.layer.adapters[name]


def replaced(model):
    part(model).thin_A = nn.Parameter(torch.randn(2, 5))


def given_other_memory(model):
    part(model).thin_B.data = torch.randn(6, 2)


def given_other_memory_twice(model):
    for _ in range(2):
        part(model).thin_B.data = part(model).thin_B.data * 3 + 1


@torch.no_grad()
def written_to(model):
    part(model).thin_A.add_(1)


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
    written_to,
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


def test_merging_and_unmerging_between(model):
    before = mixed(model)
    model.set_adapter("a")
    model.merge_adapter()
    model.unmerge_adapter()
    same(mixed(model), before)


def test_another_order_of_the_same_adapters_uses_the_same_stack(model):
    mixed(model)
    ((_, stack),) = kept(model)
    names = ["b", "c", "a", "a"]
    same(mixed(model, names=names), row_by_row(model, X, names))
    assert kept(model)[0][1] is stack


def test_many_positions_in_between_leave_the_stack(model):
    mixed(model)
    ((_, stack),) = kept(model)
    mixed(model, torch.randn(4, stacking.FEW + 1, 5))
    assert kept(model)[0][1] is stack


def test_it_is_no_state_and_copies_have_none(model):
    keys, before = list(model.state_dict()), mixed(model)
    assert kept(model)
    assert list(model.state_dict()) == keys
    layer = model.base_model.model.layer
    assert pickle.loads(pickle.dumps(layer._stacks))._kept is None
    copied = copy.deepcopy(model)
    assert kept(copied) == []
    same(mixed(copied), before)
    assert kept(copied)[0][1].a.data_ptr() != kept(model)[0][1].a.data_ptr()


def test_a_deleted_adapter_is_freed(model):
    mixed(model)
    gone, memory = weakref.ref(part(model)), weakref.ref(kept(model)[0][1].a)
    model.delete_adapter("a")
    gc.collect()
    assert gone() is None
    assert memory() is None


def test_in_training_dropout_acts(model):
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


def test_a_stack_made_in_inference_mode_serves_outside(model):
    with torch.inference_mode():
        expected = [model(X, adapter_names=NAMES) for _ in range(3)][-1].clone()
    for name in "abc":
        part(model, name).requires_grad_(False)
    assert kept(model)
    same(model(X, adapter_names=NAMES), expected)


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
