"""VB-LoRA's own mathematics, its bank, and the small form of its files."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from peftcore_vblora import VBLoRAConfig
from peftcore_vblora.top_k import logits_of, top_k_of

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def config(**options):
    return VBLoRAConfig(**{"r": 2, "num_vectors": 7, "vector_length": 2, "target_modules": ["0", "2"], **options})


def adapted(**options):
    model = get_peft_model(base(), config(**options)).eval()
    perturb(model)
    return model


def bank(model):
    (found,) = (p for name, p in model.named_parameters() if name.endswith("vblora_vector_bank"))
    return found


@pytest.mark.parametrize("path", ["0", "2"])
def test_the_delta_is_the_paper_s(path):
    """Every piece of a row of A, and of a column of B, is the mixture of the vectors with the largest logits."""
    model = adapted(topk=3)
    layer = model.get_base_model().get_submodule(path)
    adapter = layer.adapters["default"]

    def piece(logits):
        chosen = sorted(range(7), key=lambda j: -logits[j])[:3]
        weights = torch.softmax(logits[chosen], 0)
        return sum(weight * bank(model)[j] for weight, j in zip(weights, chosen, strict=True))

    out, into = layer.base_layer.weight.shape
    a = torch.stack([torch.cat([piece(adapter.vblora_logits_A[i, j]) for j in range(into // 2)]) for i in range(2)])
    b = torch.stack([torch.cat([piece(adapter.vblora_logits_B[j, i]) for j in range(out // 2)]) for i in range(2)], 1)
    torch.testing.assert_close(adapter.delta_weight(), b @ a)


def test_the_bank_follows_the_model():
    """It is held once, and copies have their own; coarse layers do not make it coarse."""
    model = adapted()
    twin = copy.deepcopy(model).double()
    assert bank(twin).dtype == torch.float64
    torch.testing.assert_close(twin(X.double()).float(), model(X))
    expected = model(X)
    with torch.no_grad():
        bank(twin).zero_()
    assert torch.equal(model(X), expected)
    assert bank(twin.to("meta")).is_meta
    assert bank(get_peft_model(base().bfloat16(), config())).dtype == torch.float32


def test_a_model_adapted_in_place_trains_its_bank():
    whole = adapted()
    inside = inject_adapter_in_model(config(), base(), state_dict=get_peft_model_state_dict(whole))
    torch.testing.assert_close(inside(X), whole(X))
    assert bank(inside).requires_grad
    inside(X).sum().backward()
    assert bank(inside).grad.abs().sum() > 0


def test_each_adapter_has_its_bank(tmp_path):
    model = adapted()
    model.add_adapter("two", config(num_vectors=4, vector_length=1, target_modules=["2"]))
    perturb(model, "two", seed=3)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.set_adapter("two")
    assert trained.isdisjoint(name for name, p in model.named_parameters() if p.requires_grad)
    expected = model(X)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path / "two")(X), expected)
    model.delete_adapter("default")
    assert torch.equal(model(X), expected)
    bank(model)
    model.delete_adapter("two")
    assert {n for n, _ in model.get_base_model().named_modules()} == {n for n, _ in base().named_modules()}


# ------------------------------------------------------------------------------------------------ top k alone


@given(
    vectors=st.integers(1, 40),
    k=st.integers(1, 40),
    pieces=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scale=st.sampled_from([0.1, 2.0, 30.0]),  # with the last, rounding leaves less than nothing for the last weight
    seed=st.integers(0, 2**32),
)
def test_the_small_form_keeps_what_acts(vectors, k, pieces, scale, seed):
    k = min(k, vectors)
    logits = torch.randn(*pieces, vectors, generator=torch.Generator().manual_seed(seed)) * scale
    again = logits_of(*top_k_of(logits, k), vectors)
    values, indices = logits.topk(k, -1)
    acting = torch.zeros_like(logits).scatter(-1, indices, values.softmax(-1))
    torch.testing.assert_close(again.softmax(-1), acting, rtol=0, atol=1e-5)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_small_files_give_the_same_model_again_and_again(low_cpu_mem_usage, tmp_path):
    model = adapted(save_only_topk_weights=True)
    model.save_pretrained(tmp_path / "once")
    once = PeftModel.from_pretrained(base(), tmp_path / "once", low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(once(X), model(X))
    once.save_pretrained(tmp_path / "twice")
    twice = PeftModel.from_pretrained(base(), tmp_path / "twice")
    torch.testing.assert_close(twice(X), model(X))
    torch.testing.assert_close(twice.merge_and_unload()(X), model(X))


def test_what_comes_from_a_small_file_is_not_trained_further(tmp_path):
    model = adapted(save_only_topk_weights=True)
    model.train()(X)  # trained, and then saved
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(loaded.train()(X), model.eval()(X))  # frozen, beside something that trains
    again = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    with pytest.raises(CheckpointError, match="save_only_topk_weights=False"):
        again.train()(X)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param({"vblora_logits_B_topk_indices": 7}, "a bank of 7", id="index too large"),
        pytest.param({"vblora_logits_A_topk_weights": 1.5}, "outside 0 to 1", id="weight too large"),
        pytest.param({"vblora_logits_A_topk_weights": float("nan")}, "outside 0 to 1", id="weight is no number"),
    ],
)
def test_damaged_small_files_change_nothing(damage, message):
    model = adapted(save_only_topk_weights=True)
    state = {key: torch.zeros_like(tensor) for key, tensor in get_peft_model_state_dict(model).items()}
    ((name, value),) = damage.items()
    state[f"base_model.model.2.{name}"].fill_(value)
    before, expected = Snapshot.of(model), model(X)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param({"num_vectors": 8}, {}, "vblora_vector_bank", id="another bank"),
        pytest.param({"vector_length": 1}, {}, "of another shape", id="other vectors"),
        pytest.param({"save_only_topk_weights": True}, {}, "topk_indices", id="small form, not asked for"),
        pytest.param({}, {"save_only_topk_weights": True}, "topk_indices", id="small form, asked for"),
    ],
)
def test_files_of_other_sizes_are_refused(written, read, message):
    state, model = get_peft_model_state_dict(adapted(**written)), adapted(**read)
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"num_vectors": 0}, "num_vectors"),
        ({"vector_length": 0}, "vector_length"),
        ({"topk": 0}, "topk"),
        ({"topk": 8}, "topk"),
        ({"vblora_dropout": 1.0}, "vblora_dropout"),
        ({"init_logits_std": -0.1}, "init_logits_std"),
        ({"save_only_topk_weights": "yes"}, "save_only_topk_weights"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"VBLoRAConfig\.{field}: "):
        config(**options)


@pytest.mark.parametrize(("length", "size"), [(3, "10 outputs"), (5, "6 inputs")])
def test_vectors_that_do_not_divide_a_layer_are_refused(length, size):
    model = base()
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=rf"VBLoRAConfig\.vector_length: {length} does not divide the {size}"):
        get_peft_model(model, config(vector_length=length))
    before.assert_same(model, "After a config was refused", "")
