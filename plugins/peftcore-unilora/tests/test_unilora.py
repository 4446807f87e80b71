"""Uni-LoRA's own mathematics: which entry of the vector goes where, and how often."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_unilora import UniLoraConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def config(**options):
    return UniLoraConfig(**{"r": 2, "theta_d_length": 7, "target_modules": ["0", "2"], **options})


def adapted(**options):
    model = get_peft_model(base(), config(**options)).eval()
    perturb(model, scale=2.0)
    return model


def adapters(model):
    return [model.get_base_model().get_submodule(path).adapters["default"] for path in ("0", "2")]


def vector(model):
    (found,) = (p for name, p in model.named_parameters() if name.endswith("unilora_theta_d"))
    return found


@settings(deadline=None, max_examples=40)
@given(r=st.integers(1, 6), length=st.integers(1, 200), seed=st.integers(0, 2**40))
def test_the_projection_is_the_paper_s(r, length, seed):
    """From the vector to all factors: one entry in each row, all columns of norm 1 and orthogonal, equally filled."""
    model = get_peft_model(base(), config(r=r, theta_d_length=length, proj_seed=seed))
    rows = []
    for adapter in adapters(model):
        for name in "AB":
            index, scale = (adapter.get_buffer(f"unilora_{what}_{name}").flatten() for what in ("indices", "scales"))
            rows.append(nn.functional.one_hot(index, length) * scale.unsqueeze(-1))
    projection = torch.cat(rows)
    assert len(projection) == r * (6 + 10 + 10 + 4)
    counts = (projection > 0).sum(0)
    assert counts.max() - counts.min() <= 1
    used = projection[:, counts > 0]
    torch.testing.assert_close(used.T @ used, torch.eye(used.shape[1]), atol=1e-5, rtol=0)
    factors = torch.cat([factor.flatten() for adapter in adapters(model) for factor in adapter.factors()])
    torch.testing.assert_close(factors, projection @ vector(model))


def test_the_seed_decides():
    def indices(**options):
        return torch.cat([adapter.unilora_indices_A.flatten() for adapter in adapters(adapted(**options))])

    assert torch.equal(indices(), indices())
    assert not torch.equal(indices(), indices(proj_seed=1))


def test_one_vector_trains():
    assert [p.numel() for p in adapted().parameters() if p.requires_grad] == [7]


def test_the_assignment_travels_where_it_is_saved(tmp_path):
    """An adapter that uses another assignment than the seed's is itself again, whatever the loading."""
    model = adapted(save_indices=True)
    for adapter in adapters(model):
        adapter.unilora_indices_A.copy_(adapter.unilora_indices_A.flip(0))
        adapter.unilora_scales_B.mul_(2)
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        torch.testing.assert_close(loaded(X), model(X))


def test_files_hold_the_vector_alone():
    assert list(get_peft_model_state_dict(adapted())) == ["base_model.unilora_theta_d"]


def test_parts_of_a_fused_layer_have_their_rows_of_its_factors():
    fused = nn.Sequential()
    fused.add_module("qkv", nn.Linear(6, 12))
    parts = {"qkv": {"q": 1, "k": 1, "v": 1}}
    whole = get_peft_model(copy.deepcopy(fused), config(target_modules=["qkv"])).get_base_model().qkv
    apart = get_peft_model(copy.deepcopy(fused), config(target_modules=["q", "v"], canonical_modules=parts))
    delta = whole.adapters["default"].delta_weight()
    apart = apart.get_base_model().qkv.adapters["default"]
    with torch.no_grad():
        apart.q.shared.unilora_theta_d.copy_(whole.adapters["default"].shared.unilora_theta_d)
    delta[4:8] = 0
    torch.testing.assert_close(apart.delta_weight(), delta)


def test_each_stacked_expert_has_factors_of_its_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 4, 6))

        def forward(self, x):
            return torch.einsum("...i,eoi->...o", x, self.matrix)

    model = nn.ModuleDict({"experts": Experts()})
    adapted = get_peft_model(model, config(target_modules=[], target_parameters=["experts.matrix"], theta_d_length=60))
    delta = adapted.get_base_model()["experts"].adapters["default"].delta_weight()
    assert delta.shape == (3, 4, 6)
    assert (delta[0] - delta[1]).abs().max() > 0 and (delta[1] - delta[2]).abs().max() > 0


def test_each_adapter_has_its_vector(tmp_path):
    model = adapted()
    model.add_adapter("two", config(theta_d_length=3, target_modules=["2"]))
    perturb(model, "two", seed=3)
    model.set_adapter("two")
    expected = model(X)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path / "two")(X), expected)
    model.delete_adapter("default")
    assert torch.equal(model(X), expected)
    assert len(vector(model)) == 3


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param({"theta_d_length": 8}, {}, "of another shape", id="another length"),
        pytest.param({"save_indices": True}, {}, "unilora_indices_A", id="indices, not asked for"),
        pytest.param({}, {"save_indices": True}, "unilora_indices_A", id="no indices, asked for"),
        pytest.param({"r": 3, "save_indices": True}, {"save_indices": True}, "of another shape", id="another rank"),
    ],
)
def test_files_of_other_sizes_are_refused(written, read, message):
    state, model = get_peft_model_state_dict(adapted(**written)), adapted(**read)
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")


@pytest.mark.parametrize("index", [-1, 7])
def test_indices_that_the_vector_does_not_have_are_refused(index):
    state, model = get_peft_model_state_dict(adapted(save_indices=True)), adapted(save_indices=True)
    state = {key: tensor.clone() for key, tensor in state.items()}
    state["base_model.model.2.unilora_indices_B"][1, 0] = index
    before, expected = Snapshot.of(model), model(X)
    with pytest.raises(CheckpointError, match=r"unilora_indices_B.*a vector of 7"):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": 2.0}, "r"),
        ({"theta_d_length": 0}, "theta_d_length"),
        ({"proj_seed": -1}, "proj_seed"),
        ({"unilora_dropout": 1.0}, "unilora_dropout"),
        ({"init_theta_d_bound": 0.0}, "init_theta_d_bound"),
        ({"save_indices": "yes"}, "save_indices"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"UniLoraConfig\.{field}: "):
        config(**options)


def test_a_rank_above_a_layer_s_sizes_is_refused():
    model = base()
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"UniLoraConfig\.r: 11 is above both sizes"):
        get_peft_model(model, config(r=11))
    before.assert_same(model, "After a config was refused", "")
