"""TinyLoRA's own mathematics: the best approximation of a weight, and who shares a vector."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_tinylora import TinyLoraConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def config(**options):
    return TinyLoraConfig(**{"u": 3, "target_modules": ["0", "2"], **options})


def adapted(**options):
    model = get_peft_model(base(), config(**options)).eval()
    perturb(model)
    return model


def adapter(model, path="0"):
    return model.get_base_model().get_submodule(path).adapters["default"]


@pytest.mark.parametrize("path", ["0", "2"])
def test_the_delta_is_the_paper_s(path):
    part = adapter(adapted(), path)
    u, s, vh = torch.linalg.svd(part.base.weight(), full_matrices=False)
    torch.testing.assert_close(part.tinylora_B @ part.tinylora_A, u[:, :2] * s[:2] @ vh[:2])
    mixed = sum(v * p for v, p in zip(part.shared.vector(part.shared.number(part.base)), part.tinylora_P, strict=True))
    torch.testing.assert_close(part.delta_weight(), part.tinylora_B @ mixed @ part.tinylora_A)


@pytest.mark.parametrize(("tied", "trained"), [(0.0, 2 * 3), (1.0, 3)])
def test_only_the_vectors_train(tied, trained):
    assert sum(p.numel() for p in adapted(weight_tying=tied).parameters() if p.requires_grad) == trained


def test_coarse_weights_are_decomposed_finely():
    model = get_peft_model(base().bfloat16(), config())
    part = adapter(model)
    assert part.tinylora_A.dtype == torch.float32
    u, s, vh = torch.linalg.svd(part.base.weight().float(), full_matrices=False)
    torch.testing.assert_close(part.tinylora_B @ part.tinylora_A, u[:, :2] * s[:2] @ vh[:2])


def test_parts_of_a_fused_layer_share_its_vector():
    fused = nn.Sequential()
    fused.add_module("qkv", nn.Linear(6, 12))
    parts = {"qkv": {"q": 1, "k": 1, "v": 1}}
    model = get_peft_model(fused, config(target_modules=["q", "v"], canonical_modules=parts))
    perturb(model)
    whole = model.get_base_model().qkv.adapters["default"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3
    assert not whole.delta_weight()[4:8].any()
    assert whole.q.delta_weight().any() and whole.v.delta_weight().any()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("save_projection", [False, True])
def test_what_is_in_the_file_counts(low_cpu_mem_usage, save_projection, tmp_path):
    """Another machine may find singular vectors with other signs."""
    model = adapted(save_projection=save_projection)
    part = adapter(model)
    part.tinylora_A[0] *= -1
    if save_projection:
        part.tinylora_P.mul_(2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(X), model(X))


def test_an_adapter_for_inference_takes_the_largest_rank_that_there_is():
    assert adapter(adapted(r=9, inference_mode=True), "2").tinylora_A.shape == (4, 10)


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param({"u": 4}, {}, "of another shape", id="another length"),
        pytest.param({"weight_tying": 1.0}, {}, "missing", id="shared by more"),
        pytest.param({"r": 1}, {}, "of another shape", id="another rank"),
    ],
)
def test_files_of_other_sizes_are_refused(written, read, message):
    state, model = get_peft_model_state_dict(adapted(**written)), adapted(**read)
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"u": 0}, "u"),
        ({"weight_tying": 1.1}, "weight_tying"),
        ({"weight_tying": -0.1}, "weight_tying"),
        ({"projection_seed": -1}, "projection_seed"),
        ({"tinylora_dropout": 1.0}, "tinylora_dropout"),
        ({"init_weights": "normal"}, "init_weights"),
        ({"init_v_bound": -1.0}, "init_v_bound"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"TinyLoraConfig\.{field}: "):
        config(**options)


def test_a_rank_above_a_layer_s_singular_values_is_refused():
    model = base()
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"TinyLoraConfig\.r: 5 is above the 4 singular values of a Linear"):
        get_peft_model(model, config(r=5))
    before.assert_same(model, "After a config was refused", "")
