"""The mathematics of Lily, what its layers share, and what it refuses."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import peftcore
import peftcore_lily
from peftcore import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peftcore.exceptions import CheckpointError, ConfigError, MergeError, NotMergeableError, TargetError
from peftcore_lily import LilyConfig


class Block(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.q = nn.Linear(width, width)
        self.v = nn.Linear(width, 4)
        self.o = nn.Linear(4, width)

    def forward(self, x):
        return x + self.o(torch.tanh(self.v(torch.tanh(self.q(x)))))


def blocks(number=5):
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(number))).eval()


def adapted(model=None, **options):
    options = {"r": 3, "num_B": 4, "target_modules": ["q", "v"], **options}
    return stir(get_peft_model(model or blocks(), LilyConfig(**options)).eval())


def stir(model, seed=1):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=rng))
    return model


X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3))


def test_the_core_finds_the_method_and_its_names():
    method = peftcore_lily.register_peft_method()
    assert (method.name, method.prefix) == ("lily", "lily_")
    assert peftcore.LilyConfig is LilyConfig


def by_hand(layer, x, over):
    """The formula, expert by expert."""
    adapter, frozen = layer.adapters["default"], layer.base_layer
    features = x @ adapter.lily_A.weight.T
    shares = (features @ adapter.lily_router.weight.T).softmax(-1)
    if over == "call":
        shares = shares.mean(tuple(range(shares.dim() - 1)), keepdim=True)
    elif x.dim() > 2:
        shares = shares.mean(tuple(range(1, shares.dim() - 1)), keepdim=True)
    experts = adapter.lily_B.weight.chunk(adapter.lily_router.out_features)
    change = sum(shares[..., e : e + 1] * (features @ b) for e, b in enumerate(experts))
    return frozen(x) + adapter.scaling * change


@pytest.mark.parametrize("over", ["call", "row"])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (1, 6), (3, 5, 6), (2, 3, 4, 6), (0, 6), (0, 5, 6)], ids=str)
def test_the_formula(shape, over):
    model = adapted(scaling=0.5, average_over=over)
    layer, x = model.base_model.model[0].q, torch.randn(shape)
    if x.dim() == 1 and over == "call":
        torch.testing.assert_close(layer(x), by_hand(layer, x[None], over)[0])
    else:
        torch.testing.assert_close(layer(x), by_hand(layer, x, over))


@given(number=st.integers(1, 7), stride=st.integers(1, 9))
def test_strides_share_a_and_all_share_b(number, stride):
    model = adapted(blocks(number), stride_A=stride)
    for name in ("q", "v"):
        layers = [block.get_submodule(name).adapters["default"] for block in model.base_model.model]
        assert len({id(layer.lily_B.weight) for layer in layers}) == 1
        assert [id(layer.lily_A.weight) for layer in layers] == [
            id(layers[n - n % stride].lily_A.weight) for n in range(number)
        ]
        assert len({id(layer.lily_A.weight) for layer in layers}) == -(-number // stride)
        assert len({id(layer.lily_router.weight) for layer in layers}) == number
    q, v = (model.base_model.model[0].get_submodule(name).adapters["default"] for name in "qv")
    assert q.lily_A.weight is not v.lily_A.weight


def test_what_is_shared_stands_in_the_model_once():
    model = adapted(stride_A=2)
    expected = {
        "lily_A": 3 * (3 * 6 + 3 * 6),
        "lily_B": 4 * 3 * 6 + 4 * 3 * 4,
        "lily_router": 10 * 4 * 3,
    }
    found = dict.fromkeys(expected, 0)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            found[name.rsplit(".", 2)[1]] += parameter.numel()
    assert found == expected
    assert model.get_nb_trainable_parameters()[0] == sum(expected.values())


def test_a_file_holds_what_is_shared_once(tmp_path):
    model = adapted(stride_A=2)
    state = get_peft_model_state_dict(model)
    assert sum(value.numel() for value in state.values()) == model.get_nb_trainable_parameters()[0]
    again = {}
    for number, block in enumerate(model.base_model.model):
        for name in ("q", "v"):
            adapter = block.get_submodule(name).adapters["default"]
            for factor in ("lily_A", "lily_B"):
                again[f"base_model.model.{number}.{name}.{factor}.weight"] = getattr(adapter, factor).weight + 1
    fresh = adapted(stride_A=2)
    set_peft_model_state_dict(fresh, {**state, **again})
    assert torch.equal(
        fresh.base_model.model[4].q.adapters["default"].lily_B.weight, again["base_model.model.0.q.lily_B.weight"]
    )
    before = fresh(X)
    again["base_model.model.3.q.lily_A.weight"] = again["base_model.model.3.q.lily_A.weight"] + 1
    with pytest.raises(CheckpointError, match=r"3\.q\.lily_A\.weight and .*2\.q\.lily_A\.weight are one tensor"):
        set_peft_model_state_dict(fresh, {**state, **again})
    assert torch.equal(fresh(X), before)


def test_layers_train_what_they_share_together():
    model = adapted(stride_A=2)
    model(X).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.any() for grad in grads.values())
    expected = model(X)
    copied = copy.deepcopy(model)
    stir(copied, 5)
    torch.testing.assert_close(model(X), expected)
    copies = [block.q.adapters["default"].lily_B.weight for block in copied.base_model.model]
    assert len({id(weight) for weight in copies}) == 1
    assert copies[0] is not model.base_model.model[0].q.adapters["default"].lily_B.weight


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": None, "exclude_modules": ["o"]},
        {"target_modules": r".*\.(q|v)"},
        {"stride_A": 2},
        {"average_over": "row"},
    ],
    ids=str,
)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_there_and_back(options, low_cpu_mem_usage, tmp_path):
    model = adapted(**{"stride_A": 3, **options})
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(blocks(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=True)
    torch.testing.assert_close(loaded.eval()(X), model(X))
    assert loaded.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    # The layers go on sharing.
    torch.testing.assert_close(stir(loaded, 2)(X), stir(model, 2)(X))


def test_names_that_mean_other_layers_too_are_not_written(tmp_path):
    """Written as whole paths, the targets would mean layers that share nothing."""
    base = blocks(3)
    base[1].q = nn.Conv1d(1, 1, 1)
    base[1].forward = lambda x: x
    model = adapted(base, target_modules="all-linear", stride_A=2)
    model.save_pretrained(tmp_path)
    fresh = copy.deepcopy(model).unload()
    torch.testing.assert_close(PeftModel.from_pretrained(fresh, tmp_path)(X), model(X))


def test_rows_of_one_adapter_are_a_batch_of_their_own():
    model = adapted()
    model.add_adapter("other", LilyConfig(r=2, target_modules=["v"]))
    model.set_adapter("other")
    stir(model, 4)
    other = model(X[[0, 3]])
    model.set_adapter("default")
    mixed = model(X, adapter_names=["other", "default", "__base__", "other"])
    torch.testing.assert_close(mixed[[0, 3]], other)
    torch.testing.assert_close(mixed[1:2], model(X[1:2]))
    torch.testing.assert_close(mixed[2:3], blocks()(X[2:3]))


def test_it_says_everywhere_why_it_cannot_be_merged():
    model = adapted()
    before = model(X)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_adapter(safe_merge=True)):
        with pytest.raises(NotMergeableError, match="its router weighs the experts by the input"):
            merge()
    torch.testing.assert_close(model(X), before)
    assert torch.equal(model.unload()(X), blocks()(X))


@pytest.mark.parametrize("order", [("lily", "lora"), ("lora", "lily")], ids="-".join)
def test_a_delta_can_be_merged_beneath_it(order):
    model = get_peft_model(blocks(), LoraConfig(r=2, target_modules=["q"], init_lora_weights=False), "lora")
    model.add_adapter("lily", LilyConfig(r=3, target_modules=["q", "v"]))
    model.set_adapter(list(order))
    stir(model)
    expected = model(X)
    model.merge_adapter(["lora"])
    torch.testing.assert_close(model(X), expected)
    with pytest.raises((NotMergeableError, MergeError)):
        model.merge_adapter()
    torch.testing.assert_close(model(X), expected)


def test_two_adapters_share_nothing():
    model = adapted(stride_A=2)
    expected = model(X)
    model.add_adapter("other", LilyConfig(r=3, num_B=4, stride_A=2, target_modules=["q", "v"]))
    model.set_adapter("other")
    stir(model, 7)
    model.set_adapter("default")
    torch.testing.assert_close(model(X), expected)
    keys = {name: set(get_peft_model_state_dict(model, adapter_name=name)) for name in ("default", "other")}
    assert keys["default"] == keys["other"]


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": "8"},
        {"stride_A": 0},
        {"stride_A": 1.5},
        {"num_B": 1},
        {"num_B": 0},
        {"scaling": "1"},
        {"init_weights": "gaussian"},
        {"average_over": "token"},
        {"ensure_weight_tying": True},
    ],
    ids=str,
)
def test_bad_values_are_refused_when_the_config_is_made(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LilyConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target_modules": ["conv"]}, TargetError, "Conv1d"),
        ({"target_modules": ["qq"]}, TargetError, "q"),
        ({"target_modules": None}, TargetError, "target_modules"),
        ({"canonical_modules": {"q": ["a", "b"]}, "target_modules": ["a"]}, ConfigError, "no delta"),
        ({"target_parameters": ["0.q.weight"]}, TargetError, "lily"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_model_changes_nothing(options, error, words):
    model = blocks()
    model.append(nn.Sequential())
    model[5].conv = nn.Conv1d(1, 1, 1)
    modules, values = list(model.modules()), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        get_peft_model(model, LilyConfig(**{"r": 2, **options}))
    assert list(model.modules()) == modules
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
