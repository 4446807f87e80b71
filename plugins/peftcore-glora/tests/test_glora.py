"""GLoRA's own mathematics, the zeros in its files, and what is refused."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.base_layers import adapt
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_glora import GloraAdapter, GloraConfig


def make(layer, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    return GloraAdapter(adapt(layer), GloraConfig(**{"r": 3, "init_weights": False, **options}))


def config(**options):
    return GloraConfig(**{"r": 2, "target_modules": ["0"], **options})


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3)], ids=repr)
def test_the_formula(layer):
    adapter = make(layer, config_D_E="vector")
    state = adapter.state_dict()
    a, b, c = (state[f"glora_{name}.Xd"] @ state[f"glora_{name}.Xu"] for name in "ABC")
    d, e = (state[f"glora_{name}.X"] for name in "DE")
    frozen = layer.weight.detach().flatten(1), layer.bias.detach()
    weight, bias = adapter.fold(layer.weight, layer.bias)
    torch.testing.assert_close(weight.flatten(1), frozen[0] + frozen[0] * a + b)
    torch.testing.assert_close(bias, frozen[1] + frozen[1] * d + e + (frozen[0] @ c)[:, 0])


def test_vectors_and_constants_are_spread():
    layer = nn.Linear(6, 4)
    adapter = make(layer, config_A_B="vector", config_C="none")
    state = adapter.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "glora_A.X": (4, 1),
        "glora_B.X": (4, 1),
        "glora_D.X": (1,),
        "glora_E.X": (1,),
    }
    for output in range(4):
        expected = layer.weight[output] * state["glora_A.X"][output] + state["glora_B.X"][output]
        torch.testing.assert_close(adapter.delta_weight()[output], expected)
    torch.testing.assert_close(adapter.delta_bias(), layer.bias * state["glora_D.X"] + state["glora_E.X"])


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4, bias=False), nn.Embedding(9, 4), nn.MultiheadAttention(4, 2, bias=False)], ids=repr
)
def test_where_there_is_no_bias_there_is_none_afterwards(layer):
    adapter = make(layer)
    assert {name.partition(".")[0] for name in adapter.state_dict()} == {"glora_A", "glora_B"}
    assert adapter.fold(adapter.base.weight(), None)[1] is None


@pytest.mark.parametrize(("options", "changes"), [({}, True), ({"config_C": "none", "config_D_E": "none"}, False)])
def test_it_says_whether_it_changes_the_bias(options, changes):
    adapter = make(nn.Linear(6, 4), **options)
    assert adapter.changes_bias is changes is (adapter.delta_bias() is not None)


def test_two_adapters_see_the_frozen_weight_and_bias():
    model, x = get_peft_model(nn.Sequential(nn.Linear(6, 4)), config(config_D_E="vector")).eval(), torch.randn(3, 6)
    model.add_adapter("other", config(config_A_B="vector"))
    changes = []
    for seed, name in enumerate(("default", "other")):
        perturb(model, name, seed=seed)
        model.set_adapter(name)
        changes.append(model(x) - model.get_base_model()[0].base_layer(x))
    model.set_adapter(["default", "other"])
    together = model(x)
    torch.testing.assert_close(together, model.get_base_model()[0].base_layer(x) + sum(changes))
    for merged in (["default"], ["other"]):
        model.merge_adapter(merged)
        torch.testing.assert_close(model(x), together)


# ------------------------------------------------------------------------------------------------------ files

ZEROS = {"glora_A.zeros": (4, 6), "glora_B.zeros": (4, 6), "glora_C.zeros": (6, 1)}


def left_out():
    return get_peft_model(nn.Sequential(nn.Linear(6, 4)), config(config_A_B="none", config_C="none"))


def test_files_hold_zeros_for_what_is_left_out_and_the_model_does_not(tmp_path):
    model = left_out()
    assert set(model.base_model.model[0].adapters["default"].state_dict()) == {"glora_D.X", "glora_E.X"}
    model.save_pretrained(tmp_path)
    file = load_file(tmp_path / "adapter_model.safetensors")
    for name, shape in ZEROS.items():
        assert file[f"base_model.model.0.{name}"].equal(torch.zeros(shape))


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("zeros", [True, False])
def test_zeros_are_taken_and_not_needed(prefix, zeros):
    model = left_out()
    other = copy.deepcopy(model)
    perturb(model)
    state = {
        prefix + key.removeprefix("base_model.model."): tensor
        for key, tensor in get_peft_model_state_dict(model).items()
        if zeros or not key.endswith(".zeros")
    }
    report = set_peft_model_state_dict(other, state)
    assert not report.missing_keys and not report.unexpected_keys
    x = torch.randn(2, 6)
    torch.testing.assert_close(other(x), model(x))


def test_other_numbers_in_their_place_are_refused(tmp_path):
    left_out().save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    file = load_file(path)
    file["base_model.model.0.glora_C.zeros"][2] = 1.0
    save_file(file, path, {"format": "pt"})
    model = nn.Sequential(nn.Linear(6, 4))
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=r"glora_C\.zeros"):
        PeftModel.from_pretrained(model, tmp_path)
    before.assert_same(model, "After a file was refused", "")


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": 2.0}, "r"),
        ({"config_A_B": "low"}, "config_A_B"),
        ({"config_C": "constant"}, "config_C"),
        ({"config_D_E": "lora"}, "config_D_E"),
        ({"config_A_B": "none", "config_C": "none", "config_D_E": "none"}, "config_A_B"),
        ({"bias": "glora_only"}, "bias"),
        ({"bias": "lora_only", "config_D_E": "none"}, "bias"),
        ({"init_weights": "zero"}, "init_weights"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"GloraConfig\.{field}: "):
        config(**options)


def test_a_rank_above_both_sizes_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(6, 4))
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"GloraConfig\.r: 7 is above both sizes"):
        get_peft_model(model, config(r=7, target_modules=["0", "1"]))
    before.assert_same(model, "After a config was refused", "")
    get_peft_model(model, config(r=7, config_A_B="vector", target_modules=["0", "1"]))


def test_an_attention_with_biases_has_a_and_b_alone():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    before = Snapshot.of(model)
    for options in ({}, {"config_C": "none"}, {"config_D_E": "none"}):
        with pytest.raises(ConfigError, match=r"GloraConfig\.config_C: .*MultiheadAttention"):
            get_peft_model(model, config(target_modules=["attention"], **options))
        before.assert_same(model, "After a config was refused", "")
    get_peft_model(model, config(target_modules=["attention"], config_C="none", config_D_E="none"))
