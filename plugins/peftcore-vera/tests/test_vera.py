"""VeRA's own mathematics, and what its shared projections have to keep."""

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
from peftcore_vera import VeraConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def adapted(**options):
    model = get_peft_model(base(), VeraConfig(target_modules=["0", "2"], **{"r": 3, **options})).eval()
    perturb(model)
    return model


def projections(model):
    """Return A and B."""
    held = {name.rpartition(".")[2]: buffer for name, buffer in model.named_buffers()}
    return held["vera_A"], held["vera_B"]


def test_the_delta_is_the_paper_s():
    model = adapted()
    a, b = projections(model)
    assert (a.shape, b.shape) == ((3, 10), (10, 3))
    for path in ("0", "2"):
        layer = model.get_base_model().get_submodule(path)
        adapter = layer.adapters["default"]
        rows, columns = layer.base_layer.weight.shape
        d, lambda_b = torch.diag(adapter.vera_lambda_d), torch.diag(adapter.vera_lambda_b)
        torch.testing.assert_close(adapter.delta_weight(), lambda_b @ b[:rows] @ d @ a[:, :columns])


def test_only_the_vectors_train():
    trained = {name: p.numel() for name, p in adapted().named_parameters() if p.requires_grad}
    assert sum(trained.values()) == (10 + 3) + (4 + 3)


@pytest.mark.parametrize("save_projection", [True, False])
def test_projections_follow_the_model(save_projection):
    """They are held once, on the model's device and in its dtype, and copies have their own."""
    model = adapted(save_projection=save_projection)
    assert [name.rpartition(".")[2] for name, _ in model.named_buffers()] == ["vera_A", "vera_B"]
    twin = copy.deepcopy(model).double()
    assert {buffer.dtype for buffer in projections(twin)} == {torch.float64}
    assert {buffer.dtype for buffer in projections(model)} == {torch.float32}
    torch.testing.assert_close(twin(X.double()).float(), model(X))
    expected = model(X)
    for buffer in projections(twin):
        buffer.zero_()
    assert torch.equal(model(X), expected)
    assert {buffer.device.type for buffer in projections(copy.deepcopy(model).to("meta"))} == {"meta"}


def test_projections_are_fine_where_layers_are_coarse():
    dtypes = {
        autocast: {
            buffer.dtype
            for buffer in projections(
                get_peft_model(
                    base().bfloat16(),
                    VeraConfig(r=3, target_modules=["0"]),
                    autocast_adapter_dtype=autocast,
                )
            )
        }
        for autocast in (True, False)
    }
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}


@pytest.mark.parametrize("save_projection", [True, False])
def test_adapters_with_different_seeds_have_projections_of_their_own(save_projection, tmp_path):
    model, alone = adapted(save_projection=save_projection), {}
    alone["default"] = model(X)
    model.add_adapter(
        "two", VeraConfig(r=5, target_modules=["2"], projection_prng_key=9, save_projection=save_projection)
    )
    perturb(model, "two", seed=3)
    model.set_adapter("two")
    alone["two"] = model(X)
    assert (alone["default"] - alone["two"]).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    for name, folder in (("default", tmp_path), ("two", tmp_path / "two")):
        torch.testing.assert_close(PeftModel.from_pretrained(base(), folder)(X), alone[name])
    before = base()
    model.delete_adapter("default")
    torch.testing.assert_close(model(X), alone["two"])
    assert len(list(model.named_buffers())) == 2
    model.delete_adapter("two")
    assert {n for n, _ in model.get_base_model().named_modules()} == {n for n, _ in before.named_modules()}
    assert list(model.named_buffers()) == []


def test_a_model_adapted_in_place_holds_its_projections():
    config = VeraConfig(r=3, target_modules=["0", "2"])
    whole, inside = adapted(), inject_adapter_in_model(config, base())
    assert len(projections(inside)) == 2
    state = {key.removeprefix("base_model.model."): t for key, t in get_peft_model_state_dict(whole).items()}
    assert set(state) == set(get_peft_model_state_dict(inside))
    set_peft_model_state_dict(inside, state)
    torch.testing.assert_close(inside(X), whole(X))
    torch.testing.assert_close(inject_adapter_in_model(config, base(), state_dict=state)(X), whole(X))


def test_a_file_with_other_projections_than_the_seed_s_brings_its_own(tmp_path):
    """Another platform may draw other numbers from a seed: what is in the file counts."""
    model = adapted()
    for buffer in projections(model):
        buffer.mul_(1.5)
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        torch.testing.assert_close(loaded(X), model(X))


def test_projections_in_a_file_may_be_what_the_seed_gives():
    state, model = get_peft_model_state_dict(adapted()), adapted(save_projection=False)
    perturb(model, seed=4)
    set_peft_model_state_dict(model, state)
    torch.testing.assert_close(model(X), adapted()(X))


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param({"projection_prng_key": 1}, {"save_projection": False}, "another seed", id="another seed"),
        pytest.param({"r": 4}, {}, "of another shape", id="another rank"),
        pytest.param({"r": 4}, {"save_projection": False}, "in shape", id="another rank, not saved"),
        pytest.param({"save_projection": False}, {}, "base_model.vera_A", id="no projections"),
    ],
)
def test_files_of_other_projections_are_refused(written, read, message):
    state, model = get_peft_model_state_dict(adapted(**written)), adapted(**read)
    before, expected = Snapshot.of(model), model(X)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"vera_dropout": 1.0}, "vera_dropout"),
        ({"projection_prng_key": 2**64}, "projection_prng_key"),
        ({"projection_prng_key": "seed"}, "projection_prng_key"),
        ({"d_initial": "0.1"}, "d_initial"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"VeraConfig\.{field}: "):
        VeraConfig(**options)
