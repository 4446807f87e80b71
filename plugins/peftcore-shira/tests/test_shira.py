"""SHiRA's own mathematics, custom masks, and what it refuses."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_shira import ShiraConfig


def adapter_on(layer, config):
    return get_peft_model(nn.Sequential(layer), config).base_model.model[0].adapters["default"]


def config(**options):
    return ShiraConfig(**{"r": 1, "target_modules": ["0"], **options})


@settings(deadline=None, max_examples=40)
@given(out=st.integers(2, 12), fan_in=st.integers(2, 12), r=st.integers(1, 3), seed=st.none() | st.integers(0, 99))
def test_distinct_entries_train_as_many_as_lora_has_numbers(out, fan_in, r, seed):
    layer = nn.Linear(fan_in, out)
    if r * (out + fan_in) > out * fan_in:
        with pytest.raises(ConfigError, match=r"ShiraConfig\.r"):
            adapter_on(layer, config(r=r))
        return
    adapter = adapter_on(layer, config(r=r, random_seed=seed, init_weights=False))
    delta = adapter.delta_weight()
    assert delta.count_nonzero() == adapter.shira_weight.numel() == r * (out + fan_in)
    rows, columns = adapter.shira_indices
    torch.testing.assert_close(delta[rows, columns], adapter.shira_weight)


@pytest.mark.parametrize(
    ("layer", "matrix"),
    [
        (nn.Conv1d(4, 8, 3), (8, 12)),
        (nn.Conv2d(4, 8, (3, 2), groups=2), (8, 12)),
        (nn.Conv3d(2, 8, 2), (8, 16)),
        (nn.Embedding(20, 6), (6, 20)),
        (nn.MultiheadAttention(8, 2), (24, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_weight_is_seen_as_a_matrix(layer, matrix):
    adapter = adapter_on(layer, config())
    assert adapter.shira_weight.shape == (sum(matrix),)
    assert all((adapter.shira_indices[dim] < matrix[dim]).all() for dim in (0, 1))
    assert adapter.shira_indices[1].max() > matrix[1] // 2


def test_the_seed_alone_chooses_the_entries():
    layer, state = nn.Linear(30, 20), torch.get_rng_state()
    first, again, other = (adapter_on(layer, config(random_seed=seed)).shira_indices for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def largest(base_layer, r, **_):
    weight = base_layer.weight.detach().abs()
    mask = torch.zeros_like(weight)
    mask.view(-1)[weight.flatten().topk(r * (weight.shape[0] + weight[0].numel())).indices] = 1
    return mask


@pytest.mark.parametrize("layer", [nn.Linear(12, 8), nn.Conv2d(3, 8, 3)], ids=["linear", "conv2d"])
def test_a_function_of_one_s_own_chooses_the_entries(layer, tmp_path):
    weight = layer.weight.detach().clone().flatten(1)
    own = config(r=2, init_weights=False)
    own.mask_fn = largest
    model = get_peft_model(nn.Sequential(copy.deepcopy(layer)), copy.deepcopy(own))
    adapter = model.base_model.model[0].adapters["default"]
    rows, columns = adapter.shira_indices.tolist()
    assert weight.abs()[rows, columns].min() >= weight.abs().flatten().sort(descending=True).values[len(rows) - 1]

    model.save_pretrained(tmp_path)  # the file holds the entries, and needs no function
    loaded = PeftModel.from_pretrained(nn.Sequential(layer), tmp_path, low_cpu_mem_usage=True)
    again = loaded.base_model.model[0].adapters["default"]
    torch.testing.assert_close(again.delta_weight(), adapter.delta_weight())


def test_the_function_gets_the_layer_and_what_the_config_says():
    seen = []

    def note(base_layer, r, **kwargs):
        seen.append((base_layer, r, kwargs))
        return largest(base_layer, r)

    own, layer = config(r=2, random_seed=9), nn.Linear(12, 8)
    own.mask_fn = note
    adapter_on(layer, own)
    assert seen == [(layer, 2, {"random_seed": 9})]


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (lambda layer, r, **_: torch.ones_like(layer.weight), "96 entries instead of 40"),
        (lambda layer, r, **_: torch.zeros(3, 4), r"\[3, 4\] instead of a tensor \[8, 12\]"),
        (lambda layer, r, **_: None, "None instead of a tensor"),
        (lambda layer, r, **_: torch.full_like(layer.weight, 0.5), "other than 0 and 1"),
    ],
    ids=["too many", "another shape", "nothing", "no mask"],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_has_changed(mask, complaint):
    model = nn.Sequential(nn.Linear(12, 8))
    before = Snapshot.of(model)
    own = config(r=2)
    own.mask_fn = mask
    with pytest.raises(ConfigError, match=rf"ShiraConfig\.mask_fn: .*{complaint}.*Linear"):
        get_peft_model(model, own)
    before.assert_same(model, "After a mask was refused", "")


def test_mask_fn_must_be_a_function():
    with pytest.raises(ConfigError, match=r"ShiraConfig\.mask_fn"):
        config().mask_fn = "random"


@pytest.mark.parametrize(
    ("field", "value"),
    [("r", 0), ("r", "2"), ("r", True), ("mask_type", "magnitude"), ("random_seed", "1"), ("init_weights", "gaussian")],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"ShiraConfig.{field}"):
        ShiraConfig(**{field: value})


@pytest.mark.parametrize("wrong", [8, -1])
def test_entries_outside_of_the_weight_are_refused_and_nothing_has_changed(wrong, tmp_path):
    saved = get_peft_model(nn.Sequential(nn.Linear(12, 8)), config())
    perturb(saved)
    saved.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    state["base_model.model.0.shira_indices"][0, 3] = wrong
    save_file(state, file, {"format": "pt"})
    model = nn.Sequential(nn.Linear(12, 8))
    before = Snapshot.of(model)
    for options in ({}, {"low_cpu_mem_usage": True}):
        with pytest.raises(CheckpointError, match="shira_indices"):
            PeftModel.from_pretrained(model, tmp_path, **options)
        before.assert_same(model, "After a file was refused", "")


def test_training_moves_the_numbers_and_not_the_entries():
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(12, 8)), config(r=2))
    adapter = model.base_model.model[0].adapters["default"]
    entries = adapter.shira_indices.clone()
    x, target = torch.randn(4, 12), torch.randn(4, 8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(30):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert torch.equal(adapter.shira_indices, entries)
