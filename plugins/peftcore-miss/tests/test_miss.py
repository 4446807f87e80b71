"""The mathematics, old files, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_miss import MissAdapter, MissConfig

LAYERS = [nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3), nn.Embedding(9, 4)]


def make(base, **options):
    """Make an adapter away from its start."""
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    adapter = MissAdapter(base, MissConfig(**options))
    nn.init.normal_(adapter.miss_block)
    return adapter


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("options", [{"r": 2}, {"r": 5}, {"r": 4, "init_weights": "mini", "mini_r": 2}], ids=str)
def test_shards_share_one_matrix(layer, options):
    adapter = make(layer, **options)
    out, into = adapter.base.matrix_shape
    block, matrix = adapter.miss_block, adapter.canonical_delta().reshape(out, into)
    assert block.shape == (options["r"], options.get("mini_r", out))
    for row in range(out):
        for column in range(into):
            assert matrix[row, column] == block[column % block.shape[0], row % block.shape[1]]


def test_blocks_are_multiplied_with_the_weight_and_added():
    adapter = make(nn.Linear(6, 4), r=2, init_weights="bat")
    assert adapter.miss_block.shape == (2, 2, 2)
    weight, delta = adapter.base.weight(), adapter.canonical_delta()
    for p in range(2):
        for q in range(3):
            block = slice(2 * p, 2 * p + 2), slice(2 * q, 2 * q + 2)
            torch.testing.assert_close(delta[block], weight[block] @ adapter.miss_block[p] + adapter.miss_block[p])


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7)])
@pytest.mark.parametrize("options", [{"r": 3}, {"r": 7}, {"r": 2, "init_weights": "mini", "mini_r": 3}], ids=str)
def test_a_linear_layer_sums_its_shards_and_never_forms_delta(shape, options, monkeypatch):
    adapter, x = make(nn.Linear(7, 6), **options), torch.randn(shape)
    delta = adapter.canonical_delta()
    monkeypatch.setattr(adapter, "delta_weight", None)
    torch.testing.assert_close(adapter.delta_forward(x), x @ delta.T)


@pytest.mark.parametrize("init", [True, "mini", "bat"])
def test_each_stacked_expert_has_a_matrix_of_its_own(init):
    options = {"r": 2, "mini_r": 3, "init_weights": init}
    holder = Holder(3, 6, 4)
    adapter = make(ParameterLayer(holder, "weight"), **options)
    for expert in range(3):
        alone = make(nn.Linear(4, 6), **options)
        with torch.no_grad():
            alone.base.layer.weight.copy_(holder.weight[expert])
            alone.miss_block.copy_(adapter.miss_block[expert])
        torch.testing.assert_close(adapter.canonical_delta()[expert], alone.canonical_delta())


def test_autograd_keeps_no_matrix_beside_delta_and_the_weight():
    layer, kept = nn.Linear(40, 40), []
    adapter, layer.weight.requires_grad = make(layer, r=4, init_weights="bat"), False
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda x: x):
        adapter.delta_weight()
    large = [tensor for tensor in kept if tensor.numel() >= 40 * 40]
    assert all(tensor.data_ptr() == layer.weight.data_ptr() for tensor in large)


def test_a_directory_from_the_time_when_it_was_called_bone(tmp_path):
    x, frozen, config = torch.randn(3, 6), nn.Sequential(nn.Linear(6, 4)), MissConfig(r=2, target_modules=["0"])
    model = get_peft_model(frozen, config).eval()
    perturb(model)
    expected = model(x)
    model.save_pretrained(tmp_path)
    frozen = model.unload()
    file = tmp_path / "adapter_model.safetensors"
    save_file({key.replace("miss_block", "bone_block"): t for key, t in load_file(file).items()}, file)
    assert any("bone_block" in key for key in load_file(file))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "BONE"}))
    loaded = PeftModel.from_pretrained(frozen, tmp_path)
    torch.testing.assert_close(loaded(x), expected)
    assert loaded.peft_config["default"].peft_type == "MISS"


@pytest.mark.parametrize(
    ("layer", "options", "says"),
    [
        (nn.Linear(6, 4), {"r": 7}, "r: 7 is above the 6 inputs"),
        (nn.Linear(6, 4), {"r": 3, "init_weights": "bat"}, "r: 3 does not divide the 4 outputs"),
        (nn.Conv2d(2, 4, 3), {"r": 4, "init_weights": "bat"}, "r: 4 does not divide the 18 inputs"),
        (nn.Linear(6, 4), {"r": 2, "mini_r": 3, "init_weights": "mini"}, "mini_r: 3 does not divide the 4 outputs"),
        (nn.MultiheadAttention(8, 2), {"r": 2, "miss_dropout": 0.1}, "miss_dropout: acts on the input"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_changes(layer, options, says):
    model = nn.ModuleDict({"first": nn.Linear(12, 12), "layer": layer})
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=rf"MissConfig\.{says}"):
        get_peft_model(model, MissConfig(target_modules=["first", "layer"], **options))
    before.assert_same(model, "After a config was refused", "")


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"r": 2.0},
        {"mini_r": 0},
        {"miss_dropout": 1.0},
        {"miss_dropout": -0.1},
        {"init_weights": "bone"},
        {"init_weights": None},
        {"bias": "lora_only"},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"MissConfig\.{next(iter(options))}: "):
        MissConfig(**options)
