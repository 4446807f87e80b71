"""RandLoRA's own mathematics, and what its shared bases have to keep."""

import copy

import pytest
import torch
from torch import nn

from peftcore import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_randlora import RandLoraConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def adapted(**options):
    options = {"r": 3, "randlora_alpha": 2, "target_modules": ["0", "2"], **options}
    model = get_peft_model(base(), RandLoraConfig(**options)).eval()
    perturb(model)
    return model


def bases(model):
    """Return A and B."""
    held = {name.rpartition(".")[2]: buffer for name, buffer in model.named_buffers()}
    return held["randlora_A"], held["randlora_B"]


@pytest.mark.parametrize("path", ["0", "2"])
def test_the_delta_is_the_paper_s(path):
    """Δ = s · Σᵢ Bᵢ diag(λᵢ) A diag(γᵢ), where the columns of all Bᵢ are named by row of A first, then by basis."""
    model = adapted()
    a, b = bases(model)
    layer = model.get_base_model().get_submodule(path)
    adapter = layer.adapters["default"]
    number, short = adapter.randlora_gamma.shape
    long = max(layer.base_layer.weight.shape)
    columns = b[:long, :number].reshape(long, 3, number)
    total = sum(
        columns[:, :, i]
        @ torch.diag(adapter.randlora_lambda[:, i])
        @ a[:, 0, :short]
        @ torch.diag(adapter.randlora_gamma[i])
        for i in range(number)
    )
    expected = total * 2 / 3
    delta = adapter.delta_weight()
    torch.testing.assert_close(delta, expected if delta.shape == expected.shape else expected.T)


def test_the_delta_has_full_rank():
    model = get_peft_model(nn.Sequential(nn.Linear(12, 10)), RandLoraConfig(r=2, target_modules=["0"]))
    perturb(model)
    assert torch.linalg.matrix_rank(model.get_base_model()[0].adapters["default"].delta_weight()) == 10


def test_only_the_scales_train():
    trained = {name: p.numel() for name, p in adapted().named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 2 * (3 + 6) + 2 * (3 + 4)  # two bases of rank 3 give ranks 6 and 4


def test_bases_have_unit_deviation():
    for options in ({}, {"sparse": True}, {"very_sparse": True}):
        model = nn.Sequential(nn.Linear(64, 80))
        for drawn in bases(get_peft_model(model, RandLoraConfig(r=8, target_modules=["0"], **options))):
            assert abs(drawn.std() - 1) < 0.01
            zeros = {"sparse": 2 / 3, "very_sparse": 1 - 1 / 8}.get(next(iter(options), ""), 0)
            assert abs((drawn == 0).float().mean() - zeros) < 0.05


@pytest.mark.parametrize("save_projection", [True, False])
def test_bases_follow_the_model(save_projection):
    """They are held once, on the model's device and in its dtype, and copies have their own."""
    model = adapted(save_projection=save_projection)
    twin = copy.deepcopy(model).double()
    assert {buffer.dtype for buffer in bases(twin)} == {torch.float64}
    torch.testing.assert_close(twin(X.double()).float(), model(X))
    expected = model(X)
    for buffer in bases(twin):
        buffer.zero_()
    assert torch.equal(model(X), expected)
    assert {buffer.device.type for buffer in bases(twin.to("meta"))} == {"meta"}


@pytest.mark.parametrize("save_projection", [True, False])
def test_files_hold_the_bases_once(save_projection, tmp_path):
    model = adapted(save_projection=save_projection)
    model.add_adapter("two", RandLoraConfig(r=5, target_modules=["2"], projection_prng_key=9, sparse=True))
    perturb(model, "two", seed=3)
    held = [key for key in get_peft_model_state_dict(model) if key.endswith(("lora_A", "lora_B"))]
    assert held == (["base_model.randlora_A", "base_model.randlora_B"] if save_projection else [])
    model.save_pretrained(tmp_path)
    for name, folder in (("default", tmp_path), ("two", tmp_path / "two")):
        model.set_adapter(name)
        for low_cpu_mem_usage in (False, True):
            loaded = PeftModel.from_pretrained(base(), folder, low_cpu_mem_usage=low_cpu_mem_usage)
            torch.testing.assert_close(loaded(X), model(X))


def test_a_model_adapted_in_place_holds_its_bases():
    whole = adapted()
    config = RandLoraConfig(r=3, randlora_alpha=2, target_modules=["0", "2"])
    inside = inject_adapter_in_model(config, base(), state_dict=get_peft_model_state_dict(whole))
    assert len(bases(inside)) == 2
    torch.testing.assert_close(inside(X), whole(X))


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param({"projection_prng_key": 1}, {"save_projection": False}, "another seed", id="another seed"),
        pytest.param({"sparse": True}, {"save_projection": False}, "another seed", id="another distribution"),
        pytest.param({"r": 4}, {}, "of another shape", id="another rank"),
        pytest.param({"target_modules": ["0"]}, {"target_modules": ["2"]}, "of another shape", id="other layers"),
        pytest.param({"save_projection": False}, {}, "base_model.randlora_A", id="no bases"),
    ],
)
def test_files_of_other_bases_are_refused(written, read, message):
    state, model = get_peft_model_state_dict(adapted(**written)), adapted(**read)
    before, expected = Snapshot.of(model), model(X)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")
    assert torch.equal(model(X), expected)


def test_a_copy_that_is_none_is_refused():
    model = adapted()
    state = get_peft_model_state_dict(model)
    copied = {f"base_model.model.0.randlora_{name}": state[f"base_model.randlora_{name}"].clone() for name in "AB"}
    set_peft_model_state_dict(model, {**state, **copied})
    copied["base_model.model.0.randlora_B"][0, 0, 0] += 1
    with pytest.raises(CheckpointError, match=r"base_model\.model\.0\.randlora_B is no copy"):
        set_peft_model_state_dict(model, {**state, **copied})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"randlora_dropout": 1.0}, "randlora_dropout"),
        ({"randlora_alpha": "big"}, "randlora_alpha"),
        ({"projection_prng_key": 2**64}, "projection_prng_key"),
        ({"sparse": 1}, "sparse"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"RandLoraConfig\.{field}: "):
        RandLoraConfig(**options)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(nn.Linear(1, 1), {"r": 1}, id="one number"),
        pytest.param(nn.Linear(3, 1), {"r": 1, "sparse": True}, id="zeros alone"),
    ],
)
def test_bases_too_small_to_be_drawn_are_refused(model, options):
    model = nn.Sequential(model)
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"RandLoraConfig\.r: .* too small"):
        get_peft_model(model, RandLoraConfig(target_modules=["0"], **options))
    before.assert_same(model, "After a config was refused", "")
