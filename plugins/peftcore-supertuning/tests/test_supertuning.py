"""Super-Tuning's and Supra's own mathematics, files without places, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.base_layers import adapt
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_supertuning import SupertuningAdapter, SupertuningConfig

LAYERS = [nn.Linear(6, 8), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 5)]


def make(layer, **options):
    torch.manual_seed(0)
    return SupertuningAdapter(adapt(layer), SupertuningConfig(**{"sparsity": 0.8, "init_weights": False, **options}))


def config(**options):
    return SupertuningConfig(**{"sparsity": 0.8, "target_modules": ["0"], **options})


@settings(deadline=None, max_examples=40)
@given(out=st.integers(1, 12), into=st.integers(1, 12), sparsity=st.floats(0, 0.99), top=st.booleans())
def test_the_entries_that_train_are_the_largest_or_the_smallest(out, into, sparsity, top):
    layer, count = nn.Linear(into, out), int(out * into * (1 - sparsity))
    if not count:
        with pytest.raises(ConfigError, match=r"SupertuningConfig\.sparsity: .* leaves none of the"):
            make(layer, sparsity=sparsity)
        return
    adapter = make(layer, sparsity=sparsity, select_top=top)
    trains = adapter.delta_weight() != 0
    assert trains.sum() == count == len(adapter.supertuning_values)
    magnitudes = layer.weight.detach().abs()
    inside, outside = magnitudes[trains], magnitudes[~trains]
    if len(outside):
        assert inside.min() >= outside.max() if top else inside.max() <= outside.min()


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize(("alpha", "scaling"), [(None, 2), (6.0, 2), (1.5, 0.5)])
def test_supra_adds_a_low_rank_matrix(layer, alpha, scaling):
    adapter, sparse = make(layer, r=3, lora_alpha=alpha), make(layer)
    state = adapter.state_dict()
    sparse.load_state_dict({name: state[name] for name in sparse.state_dict()})
    low_rank = state["supertuning_lora_B.weight"] @ state["supertuning_lora_A.weight"] * scaling
    expected = sparse.delta_weight().reshape(adapter.base.matrix_shape) + low_rank
    torch.testing.assert_close(adapter.delta_weight().reshape(adapter.base.matrix_shape), expected)


@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3)], ids=repr)
def test_what_is_dropped_is_missed_by_the_low_rank_matrix_alone(layer):
    adapter = make(layer, r=3, lora_dropout=0.5)
    x = torch.randn(2, *{nn.Linear: (6,), nn.Conv1d: (4, 5), nn.Conv2d: (2, 5, 5)}[type(layer)])
    torch.manual_seed(4)
    output = adapter.delta_forward(x)
    torch.manual_seed(4)
    dropped, low_rank = nn.functional.dropout(x, 0.5), adapter.low_rank()
    expected = adapter.base.apply(adapter.delta_weight() - low_rank, x) + adapter.base.apply(low_rank, dropped)
    torch.testing.assert_close(output, expected)
    adapter.eval()
    torch.testing.assert_close(adapter.delta_forward(x), adapter.base.apply(adapter.delta_weight(), x))


def test_stacked_experts_are_one_weight_with_a_pair_of_factors_each():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 4, 6))
            self.matrix.data[1] *= 100

    model = nn.ModuleDict({"experts": Experts()})
    options = {"sparsity": 2 / 3, "r": 2, "init_weights": False, "target_modules": [], "lora_alpha": 2.0}
    adapted = get_peft_model(model, SupertuningConfig(**options, target_parameters=["experts.matrix"]))
    adapter = adapted.get_base_model()["experts"].adapters["default"]
    a, b = adapter.supertuning_lora_A["weight"], adapter.supertuning_lora_B["weight"]
    changed = (adapter.delta_weight() - torch.stack([b[i] @ a[i] for i in range(3)])).abs() > 1e-5
    assert changed.sum((1, 2))[[0, 2]].tolist() == [0, 0] and changed[1].sum() > 20


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_without_places_in_the_file_they_are_found_again(low_cpu_mem_usage, tmp_path):
    layer, x = nn.Linear(12, 8), torch.randn(3, 12)
    weights = layer.state_dict()
    model = get_peft_model(nn.Sequential(layer), config(save_precomputed_indices=False)).eval()
    perturb(model)
    model.save_pretrained(tmp_path)
    file = load_file(tmp_path / "adapter_model.safetensors")
    assert list(file) == ["base_model.model.0.supertuning_values"]
    again = nn.Linear(12, 8)
    again.load_state_dict(weights)
    loaded = PeftModel.from_pretrained(nn.Sequential(again), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    torch.testing.assert_close(loaded(x), model(x))


def test_a_new_adapter_sees_the_frozen_weight_while_others_are_merged():
    model = get_peft_model(nn.Sequential(nn.Linear(12, 8)), config())
    perturb(model, scale=9.0)
    places = model.get_base_model()[0].adapters["default"].supertuning_indices
    model.merge_adapter()
    model.add_adapter("other", config())
    assert torch.equal(model.get_base_model()[0].adapters["other"].supertuning_indices, places)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"select_top": "largest"}, "select_top"),
        ({"r": 0}, "r"),
        ({"r": 2.0}, "r"),
        ({"lora_alpha": 4.0}, "lora_alpha"),
        ({"lora_dropout": 1.0, "r": 2}, "lora_dropout"),
        ({"init_weights": None}, "init_weights"),
        ({"save_precomputed_indices": 1}, "save_precomputed_indices"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"SupertuningConfig\.{field}: "):
        config(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sparsity": 0.97}, r"SupertuningConfig\.sparsity: 0\.97 leaves none of the 24 entries of a Linear"),
        ({"r": 7}, r"SupertuningConfig\.r: 7 is above both sizes"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused_before_anything_changes(options, complaint):
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(6, 4))
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=complaint):
        get_peft_model(model, config(target_modules=["0", "1"], **options))
    before.assert_same(model, "After a config was refused", "")


def test_a_weight_with_more_entries_than_files_can_count_is_refused():
    layer = nn.Linear(2**16, 2**15, bias=False, device="meta")
    with pytest.raises(ConfigError, match=r"SupertuningConfig\.target_modules: .*2147483648 entries"):
        make(layer, sparsity=0.9999)


def test_dropout_is_refused_where_the_weight_is_used_as_a_whole_and_there_is_something_to_drop():
    options = {"lora_dropout": 0.1, "target_modules": ["attention"]}
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ConfigError, match=r"SupertuningConfig\.lora_dropout.*MultiheadAttention"):
        get_peft_model(model, config(r=2, **options))
    get_peft_model(model, config(**options))


@pytest.mark.parametrize("wrong", [96, -1])
def test_entries_outside_of_the_weight_are_refused_and_nothing_has_changed(wrong, tmp_path):
    get_peft_model(nn.Sequential(nn.Linear(12, 8)), config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    state["base_model.model.0.supertuning_indices"][3] = wrong
    save_file(state, file, {"format": "pt"})
    model = nn.Sequential(nn.Linear(12, 8))
    before = Snapshot.of(model)
    for options in ({}, {"low_cpu_mem_usage": True}):
        with pytest.raises(CheckpointError, match="supertuning_indices"):
            PeftModel.from_pretrained(model, tmp_path, **options)
        before.assert_same(model, "After a file was refused", "")


def test_only_dropout_in_training_keeps_delta_from_acting_as_a_whole():
    for options, training, whole in (({"r": 2}, True, True), ({"r": 2, "lora_dropout": 0.5}, True, False)):
        config = SupertuningConfig(sparsity=0.5, **options)
        adapter = SupertuningAdapter(adapt(nn.Linear(6, 4)), config).train(training)
        assert adapter.acts_whole() == whole
        assert adapter.eval().acts_whole()
