"""FRoD's own mathematics: the basis that layers share, what a file brings, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError
from peftcore.registry import registry
from peftcore.testing import Snapshot, perturb
from peftcore_frod import FrodConfig
from peftcore_frod.bases import category_of, common_basis, places

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.v(self.q(x).tanh())


def base():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


def adapted(targets=("q", "v"), perturbed=True, **options):
    config = FrodConfig(**{"sparse_rate": 0.2, "target_modules": list(targets), **options})
    model = get_peft_model(base(), config).eval()
    if perturbed:
        perturb(model)
    return model


def adapter(model, path="0.q"):
    return model.get_base_model().get_submodule(path).adapters["default"]


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 4), out=st.integers(2, 9), into=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_basis_decomposes_every_weight(count, out, into, seed):
    """W · V⁻ᵀ · Vᵀ = W; and with two weights of full rank, the columns of both W · V⁻ᵀ are orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out, into, generator=generator, dtype=torch.float64) for _ in range(count)]
    basis = common_basis(weights, 1e-3)
    columns = [torch.linalg.solve(basis, weight.T).T for weight in weights]
    for weight, column in zip(weights, columns, strict=True):
        torch.testing.assert_close(column @ basis.T, weight)
    if count <= 2 and out >= into:
        for column in columns:
            gram = column.T @ column
            torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-8)


def test_places_are_off_the_diagonal_and_come_from_the_generator():
    drawn = places(6, 0.4, torch.Generator().manual_seed(1))
    assert drawn.shape == (2, int(0.4 * 36))
    assert drawn.unique(dim=1).shape == drawn.shape
    assert not (drawn[0] == drawn[1]).any()
    assert torch.equal(drawn, places(6, 0.4, torch.Generator().manual_seed(1)))
    assert places(6, 1.0, torch.Generator()).shape == (2, 30)
    assert places(6, 0.0, torch.Generator()).shape == (2, 1)
    assert places(1, 0.5, torch.Generator()).shape == (2, 0)


def assert_the_paper_s(part):
    basis, weight = part.shared.frod_V["q"], part.base.weight().detach()
    turned = weight @ torch.linalg.inv(basis).T
    lengths = turned.norm(dim=0)
    rows, columns = part.shared.frod_s_indices["q"]
    middle = torch.diag(part.frod_lambda_l.detach()).index_put((rows, columns), part.frod_lambda_s_values.detach())
    torch.testing.assert_close(weight + part.delta_weight().detach(), turned / lengths @ middle @ basis.T)


def test_the_changed_weight_is_the_paper_s():
    assert_the_paper_s(adapter(adapted(["q"])))


def test_everything_follows_the_basis_and_the_places_of_a_file():
    model = adapted(["q"])
    state = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    state["base_model.frod_V.q"][:, 0] *= -2
    state["base_model.frod_s_indices.q"] = state["base_model.frod_s_indices.q"].flip(0)
    set_peft_model_state_dict(model, state)
    assert_the_paper_s(adapter(model))
    torch.testing.assert_close(adapter(model).delta_forward(X), X @ adapter(model).delta_weight().T)


def test_layers_of_one_name_share_a_basis_and_others_have_their_own():
    model = adapted()
    shared = adapter(model).shared
    assert {name for name, _ in shared.frod_V.named_buffers()} == {"q", "v"}
    assert adapter(model, "1.q").shared is shared and adapter(model, "1.q").category == "q"
    names = {name for name in get_peft_model_state_dict(model) if name.startswith("base_model.frod")}
    assert names == {f"base_model.frod_{what}.{q}" for what in ("V", "s_indices", "s_size") for q in "qv"}


def test_layers_of_one_name_and_different_sizes_have_a_basis_for_each():
    model = nn.Sequential(nn.ModuleDict({"q": nn.Linear(6, 4)}), nn.ModuleDict({"q": nn.Linear(8, 4)}))
    adapted = get_peft_model(model, FrodConfig(target_modules=["q"]))
    assert [adapter(adapted, f"{n}.q").category for n in range(2)] == ["q_6", "q_8"]


@pytest.mark.parametrize("path", ["1.q", "1.v"])
def test_a_new_adapter_changes_nothing_at_all(path):
    assert not adapter(adapted(perturbed=False), path).delta_weight().any()


def test_a_direction_that_the_weight_takes_to_zero_stays_there():
    layer = nn.Linear(6, 4)
    model = get_peft_model(nn.Sequential(layer), FrodConfig(target_modules=["0"], sparse_rate=0.5))
    perturb(model, scale=10)
    part = adapter(model, "0")
    assert (part.start > 1e-5 * part.start.max()).sum() == 4
    assert part.delta_weight().isfinite().all()
    assert part.delta_weight().abs().max() < 1e3


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("0", "0"),
        ("model.layers.0.q", "q"),
        ("model.layers.3.self_attn.q_proj", "self_attn_q_proj"),
        ("encoder.layer.2.attention.output.dense", "attention_output"),
        ("encoder.layer.2.output.dense", "output_dense"),
        ("blocks.1.0", "0"),
    ],
)
def test_names_of_categories(path, category):
    assert category_of(path) == category


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_the_basis_in_the_file_counts(low_cpu_mem_usage, tmp_path):
    """Another machine may find directions with other signs."""
    model = adapted()
    with torch.no_grad():
        model.base_model.tuner("default").shared.frod_V["q"][:, 0] *= -1
    set_peft_model_state_dict(model, get_peft_model_state_dict(model))
    expected = model(X)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(X), expected)


def test_without_the_bases_files_hold_what_trains(tmp_path):
    model = adapted(save_projection=False, projection_prng_key=5)
    state = get_peft_model_state_dict(model)
    assert {name.rpartition(".")[2] for name in state} == {"frod_lambda_l", "frod_lambda_s_values"}
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(X), model(X))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("base_model.frod_V.q", lambda basis: torch.zeros_like(basis), "has no inverse"),
        ("base_model.frod_s_indices.q", lambda indices: indices + 6, "entries of S, 6 × 6"),
        ("base_model.frod_s_indices.q", lambda indices: indices[:, 1:], "another shape"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(key, change, message):
    model = adapted()
    state = get_peft_model_state_dict(model)
    state[key] = change(state[key])
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sparse_rate": -0.1}, "sparse_rate"),
        ({"sparse_rate": 1.1}, "sparse_rate"),
        ({"regularization_alpha": 0.0}, "regularization_alpha"),
        ({"frod_dropout": 1.0}, "frod_dropout"),
        ({"projection_prng_key": 2**63}, "projection_prng_key"),
        ({"save_projection": None}, "save_projection"),
        ({"init_weights": "zero"}, "init_weights"),
        ({"progressbar": 1}, "progressbar"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"FrodConfig\.{field}: "):
        FrodConfig(**options)


def test_dropout_is_refused_where_the_weight_is_used_as_a_whole():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ConfigError, match=r"FrodConfig\.frod_dropout.*MultiheadAttention"):
        get_peft_model(model, FrodConfig(frod_dropout=0.1, target_modules=["attention"]))


def test_default_targets():
    assert registry.default_target_modules("frod", "llama") == ["q_proj", "v_proj"]
    assert registry.default_target_modules("frod", "phi") == ["q_proj", "v_proj"]


@pytest.mark.parametrize("tokens", [3, 9])
def test_few_tokens_and_many_are_changed_alike(tokens):
    part = adapter(adapted(), "0.q")
    x = torch.randn(tokens, 6)
    torch.testing.assert_close(part.delta_forward(x), x @ part.delta_weight().T)
