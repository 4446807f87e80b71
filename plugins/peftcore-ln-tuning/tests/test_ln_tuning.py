"""What LN tuning trains, keeps and refuses."""

import pytest
import torch
from torch import nn

import peftcore
import peftcore_ln_tuning
from peftcore import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peftcore.exceptions import CompositionError, ConfigError, TargetError
from peftcore_ln_tuning import LNTuningAdapter, LNTuningConfig


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.lin = nn.Linear(6, 6)
        self.batch = nn.BatchNorm1d(6)

    def forward(self, x):
        return x + self.batch(torch.tanh(self.lin(self.norm(x))))


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_core_finds_the_method_and_its_names():
    method = peftcore_ln_tuning.register_peft_method()
    assert (method.name, method.prefix) == ("ln_tuning", "ln_tuning_")
    assert peftcore.LNTuningConfig is LNTuningConfig


def test_training_changes_the_copies_alone():
    base = blocks()
    before = state(base)
    model = get_peft_model(base, LNTuningConfig(target_modules=["norm", "batch"]))
    assert {name.split(".adapters.default.")[1] for name, p in model.named_parameters() if p.requires_grad} == {
        "module.weight",
        "module.bias",
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(3):
        model(X).square().sum().backward()
        optimizer.step()
    copies = get_peft_model_state_dict(model)
    assert copies["base_model.model.0.batch.ln_tuning_layers.num_batches_tracked"] == 3
    restored = model.unload()
    assert state(restored).keys() == before.keys()
    for name, value in restored.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_merged_for_good_the_copies_are_the_model():
    model = get_peft_model(blocks(), LNTuningConfig(target_modules=["norm"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad)
    expected, copies = model(X), get_peft_model_state_dict(model)
    merged = model.merge_and_unload()
    assert torch.equal(merged(X), expected)
    for number in "01":
        own = merged.get_submodule(f"{number}.norm.weight".rpartition(".")[0]).weight
        assert torch.equal(own, copies[f"base_model.model.{number}.norm.ln_tuning_layers.weight"])


@pytest.mark.parametrize("targets", [["norm"], ["norm", "batch"], ["0", "1"]], ids="-".join)
def test_a_coarse_model_trains_in_float32(targets):
    base = blocks().bfloat16()
    frozen = base(X.bfloat16())
    model = get_peft_model(base, LNTuningConfig(target_modules=targets))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(model(X.bfloat16()), frozen)
    model.train()(X.bfloat16()).square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    expected = model.eval()(X.bfloat16())
    merged = model.merge_and_unload()
    assert {tensor.dtype for tensor in merged.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert torch.equal(merged(X.bfloat16()), expected)


def test_a_copy_is_free_of_other_adapters():
    base = blocks()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["lin"], init_lora_weights=False), "lora")
    model.add_adapter("copies", LNTuningConfig(target_modules=["0"]))
    assert not any("lora" in name for name in get_peft_model_state_dict(model, adapter_name="copies"))
    expected = model(X)
    model.set_adapter("copies")
    assert torch.equal(model(X), blocks()(X))
    model.delete_adapter("copies")
    model.set_adapter("lora")
    assert torch.equal(model(X), expected)


def test_beside_an_adapter_on_other_layers():
    model = get_peft_model(blocks(), LoraConfig(r=2, target_modules=["lin"], init_lora_weights=False), "lora")
    model.add_adapter("norms", LNTuningConfig(target_modules=["norm"]))
    model.set_adapter(["lora", "norms"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norms" in name:
                parameter.add_(1)
    expected = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(model.merge_and_unload()(X), expected)


def test_on_the_layer_of_another_adapter_it_stands_alone():
    model = get_peft_model(blocks(), LoraConfig(r=2, target_modules=["lin"]), "lora")
    model.add_adapter("copies", LNTuningConfig(target_modules=["lin"]))
    with pytest.raises(CompositionError, match="Activate one of them"):
        model.set_adapter(["lora", "copies"])
    assert model.active_adapters == ["lora"]


def test_the_copy_is_found_where_hf_peft_has_it():
    model = get_peft_model(blocks(), LNTuningConfig(target_modules=["norm"]))
    layer = model.base_model.model[0].norm
    assert isinstance(layer.adapters["default"], LNTuningAdapter)
    assert isinstance(layer.ln_tuning_layers["default"], nn.LayerNorm)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target_modules": ["0", "norm"]}, TargetError, r"names 0, of which 0\.norm is a part"),
        ({"target_modules": ["normm"]}, TargetError, "norm"),
        ({}, TargetError, "target_modules"),
        ({"target_parameters": ["lin.weight"]}, TargetError, "ln_tuning"),
        ({"target_modules": ["norm"], "modules_to_save": ["nom"]}, TargetError, "nom"),
        ({"target_modules": ["lin"], "target_parameters": ["lin.weight"]}, TargetError, "ln_tuning"),
    ],
    ids=str,
)
def test_bad_targets_change_nothing(options, error, words):
    base = blocks()
    before, modules = state(base), list(base.modules())
    with pytest.raises(error, match=words):
        get_peft_model(base, LNTuningConfig(**options))
    assert list(base.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in state(base).items())
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize(
    "options", [{"target_modules": 3}, {"modules_to_save": "norm"}, {"layers_pattern": "h"}], ids=str
)
def test_bad_values_are_refused_when_the_config_is_made(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        LNTuningConfig(**options)


def test_layers_that_store_one_weight_cannot_share_a_copy():
    base = blocks()
    base[1].norm.weight = base[0].norm.weight
    with pytest.raises(ConfigError, match="ensure_weight_tying"):
        get_peft_model(base, LNTuningConfig(target_modules=["norm"], ensure_weight_tying=True))


class Scaled(nn.Sequential):
    """A container with a parameter of its own."""

    def __init__(self):
        super().__init__(nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6)))
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, x):
        return super().forward(x) * self.scale + self.shift


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_container_travels_whole(tmp_path, low_cpu_mem_usage):
    torch.manual_seed(0)
    base = nn.Sequential(Scaled())
    model = get_peft_model(base, LNTuningConfig(target_modules="0"), "other")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.requires_grad)
    assert set(get_peft_model_state_dict(model, adapter_name="other")) == {
        f"base_model.model.0.ln_tuning_layers.{name}"
        for name in ("scale", "shift", "default.0.weight", "default.0.bias", "default.1.0.weight", "default.1.0.bias")
    }
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    fresh = nn.Sequential(Scaled())
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(X), model(X))
    assert not torch.equal(loaded(X), model.unload()(X))
