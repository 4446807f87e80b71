"""Dtypes, devices, modes, compilation, and gradient checkpointing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftcore import PeftModel, get_peft_model

from .methods import BankedConfig, GatedConfig, PlainConfig, ScaledConfig, TurnedConfig
from .models import Net, Single, Words, same, stir

X = torch.linspace(-1, 1, 20).reshape(4, 5)


# -------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_adapters_on_coarse_layers_are_float32_unless_told_otherwise(dtype, autocast):
    net = Net().to(dtype)
    model = get_peft_model(net, PlainConfig(target_modules=["one", "two"]), autocast_adapter_dtype=autocast)
    coarse = dtype in (torch.bfloat16, torch.float16)
    expected = torch.float32 if coarse and autocast else dtype
    assert {p.dtype for p in model.base_model.tuner("default").parameters()} == {expected}
    assert model(X.to(dtype)).dtype == dtype
    mixed = model(X.to(dtype), adapter_names=["default", "__base__"] * 2)
    assert mixed.dtype == dtype
    model(X.to(dtype)).float().sum().backward()
    model.merge_adapter()
    assert net.one.base_layer.weight.dtype == dtype
    assert model(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("config", [PlainConfig, ScaledConfig, TurnedConfig], ids=["plain", "scaled", "turned"])
def test_coarse_layers_merge_to_what_forward_gives(config):
    net = Single(nn.Linear(5, 5).bfloat16())
    model, x = get_peft_model(net, config(target_modules=["layer"])), X.bfloat16()
    expected = model(x)
    assert expected.dtype == torch.bfloat16
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("config", [PlainConfig, TurnedConfig, GatedConfig], ids=["plain", "turned", "gated"])
@pytest.mark.parametrize("names", [None, ["default", "__base__"] * 2], ids=["", "mixed batch"])
def test_a_coarse_layer_keeps_its_dtype_whatever_acts_on_it(config, names):
    net = Net().bfloat16()
    model = get_peft_model(net, config(target_modules=["one", "two"]))
    assert model(X.bfloat16(), adapter_names=names).dtype == torch.bfloat16


def test_an_adapter_moves_with_the_model():
    model = get_peft_model(Net(), BankedConfig(target_modules=["one", "two"]))
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(X.double()).dtype == torch.float64


# ------------------------------------------------------------------------------------------- meta device


CONFIGS = {
    "delta": PlainConfig(target_modules=["lin", "emb"]),
    "transform": TurnedConfig(target_modules=["lin"]),
    "shared state": BankedConfig(target_modules=["lin", "head"]),
    "saved module": PlainConfig(target_modules=["lin"], modules_to_save=["head"]),
    "biases": PlainConfig(target_modules=["lin"], bias="all"),
    "tokens": PlainConfig(target_modules=["lin"], trainable_token_indices={"emb": [1, 4]}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loading_without_making_values_first(config, tmp_path):
    words, ids = Words(head_bias=True), torch.arange(8).reshape(2, 4)
    values = {name: value.clone() for name, value in words.state_dict().items()}
    model = stir(get_peft_model(words, config))
    model.save_pretrained(tmp_path)
    fresh = Words(head_bias=True)
    fresh.load_state_dict(values)
    loaded = PeftModel.from_pretrained(fresh, tmp_path, low_cpu_mem_usage=True, is_trainable=True)
    same(loaded(ids), model(ids))
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    loaded(ids).sum().backward()
    assert all(p.grad is not None for p in loaded.base_model.tuner("default").parameters())


def test_made_without_values():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"]), low_cpu_mem_usage=True)
    assert all(p.is_meta for p in model.base_model.tuner("default").parameters())
    assert not model.get_base_model().one.base_layer.weight.is_meta


def test_a_whole_model_on_the_meta_device():
    with torch.device("meta"):
        net = Net()
    model = get_peft_model(net, PlainConfig(target_modules=["one"]))
    assert all(p.is_meta for p in model.parameters())
    assert model(X.to("meta")).shape == (4, 3)


# ---------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_adapters_come_in_the_models_mode(training):
    model = get_peft_model(Net().train(training), PlainConfig(target_modules=["one"], modules_to_save=["head"]))
    model.add_adapter("b", TurnedConfig(target_modules=["one", "two"]))
    parts = [part for layer in model.base_model.layers() for name in layer.names() for part in layer.parts(name)]
    assert len(parts) == 4
    assert all(module.training is training for part in parts for module in part.modules())
    assert model.training is training
    model.train(not training)
    assert all(module.training is not training for module in model.modules())


def test_each_layers_own_mode_counts():
    net = Net().train()
    net.two.eval()
    get_peft_model(net, PlainConfig(target_modules=["one", "two"]))
    assert net.one.adapters["default"].training
    assert not net.two.adapters["default"].training


# ----------------------------------------------------------------------------------------------- compilation


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["c"], ["a", "c", "b"]], ids=repr)
def test_it_compiles_whole(names):
    torch._dynamo.reset()
    model = get_peft_model(Net(), PlainConfig(target_modules=["one", "two"], modules_to_save=["head"]), "a")
    model.add_adapter("b", PlainConfig(target_modules=["one"]))
    model.add_adapter("c", TurnedConfig(target_modules=["two"]))
    model.set_adapter(names)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    same(compiled(X), model(X))
    compiled(X).sum().backward()
    assert all(p.grad is not None for p in model.base_model.tuner(names[0]).parameters())


def test_a_compiled_model_sees_switches():
    torch._dynamo.reset()
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"]), "a")
    model.add_adapter("b", PlainConfig(target_modules=["one"]))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for names in ("a", "b", ["a", "b"], []):
        model.set_adapter(names)
        same(compiled(X), model(X))
    model.set_adapter("a")
    with model.disable_adapter():
        same(compiled(X), model(X))
    model.merge_adapter()
    same(compiled(X), model(X))


# --------------------------------------------------------------------------------------- checkpointing


class Checkpointed(Net):
    reentrant: bool | None = None

    def forward(self, x):
        if self.reentrant is None:
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


def gradients(model, adapter_names):
    model.zero_grad()
    model(X.clone().requires_grad_(), adapter_names=adapter_names).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("names", [None, ["a", "b", "__base__", "b"]], ids=["", "mixed batch"])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, names):
    net = Checkpointed()
    model = get_peft_model(net, PlainConfig(target_modules=["one", "two"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["one", "two"]))
    model.set_adapter(["a", "b"])
    expected = gradients(model, names)
    net.reentrant = reentrant
    actual = gradients(model, names)
    assert actual.keys() == expected.keys()
    for name in expected:
        same(actual[name], expected[name])
