"""PVeRA's own mathematics: what is drawn, from which distribution, and where."""

import copy

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError, UnsupportedLayerError
from peftcore.testing import Snapshot, perturb
from peftcore_pvera import PveraConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).eval()


def adapted(model=None, **options):
    model = get_peft_model(model or base(), PveraConfig(**{"r": 3, "target_modules": ["0"], **options})).eval()
    perturb(model)
    return model


def change(model, x=X):
    """Return what the adapter adds to the first layer's output."""
    layer = model.get_base_model()[0]
    return (layer(x) - layer.base_layer(x)).detach()


def test_the_distribution_is_the_paper_s():
    """Many draws have the mean B μ and the covariance B diag(exp v) Bᵀ, between the vectors λ_b."""
    model = adapted(sample_at_inference=True)
    adapter = model.get_base_model()[0].adapters["default"]
    a, b = adapter.projections()
    mean, log_variance = (adapter.pvera_lambda_d * (X[:1] @ a.T)).detach().chunk(2, -1)
    out = adapter.pvera_lambda_b.detach().unsqueeze(-1) * b
    torch.manual_seed(0)
    drawn = change(model, X[:1].expand(100_000, -1))
    expected = out @ torch.diag(log_variance[0].exp()) @ out.T
    spread = expected.diagonal().sqrt()
    assert ((drawn.mean(0) - out @ mean[0]).abs() < 5 * spread / 100_000**0.5).all()
    assert ((drawn.T.cov() - expected).abs() < 0.03 * spread.outer(spread)).all()


def test_training_draws_and_inference_does_not():
    model = adapted()
    expected = X @ model.get_base_model()[0].adapters["default"].delta_weight().detach().T
    for _ in range(2):
        torch.testing.assert_close(change(model), expected)
    model.train()
    assert (change(model) - change(model)).abs().min() > 0


def test_every_row_and_every_token_is_drawn_apart():
    drawn = change(adapted(sample_at_inference=True), X[:1].expand(2, 3, -1)).flatten(0, 1)
    assert len({tuple(row) for row in drawn.tolist()}) == 6


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_group_of_a_convolution_is_drawn_apart(groups):
    """With equal weights and inputs in all groups, they differ in what is drawn, and in nothing else."""
    model = adapted(nn.Sequential(nn.Conv1d(8, 4 * groups, 1, groups=groups)), sample_at_inference=True)
    adapter = model.get_base_model()[0].adapters["default"]
    with torch.no_grad():
        adapter.shared.pvera_B.copy_(adapter.shared.pvera_B[:4].repeat(groups, 1))
        adapter.pvera_lambda_b.fill_(1.0)
    x = torch.randn(1, 8 // groups, 1).repeat(1, groups, 1)
    torch.manual_seed(3)
    one, *others = change(model, x).reshape(groups, 4)
    assert all((one - other).abs().min() > 0 for other in others)
    adapter.sample_at_inference = False
    one, *others = change(model, x).reshape(groups, 4)
    for other in others:
        torch.testing.assert_close(one, other)


def test_gradients_reach_the_mean_and_the_variance():
    model = adapted().train()
    model(X).square().sum().backward()
    adapter = model.get_base_model()[0].adapters["default"]
    assert (adapter.pvera_lambda_d.grad.abs() > 0).all()
    assert (adapter.pvera_lambda_b.grad.abs() > 0).all()


def test_a_seed_decides_what_is_drawn_and_a_copy_starts_again():
    one, two = (adapted(sample_at_inference=True, generator_seed=5) for _ in range(2))
    torch.manual_seed(1)
    first = change(one)
    torch.manual_seed(2)
    assert torch.equal(change(two), first)
    assert not torch.equal(change(one), first)
    assert torch.equal(change(copy.deepcopy(one)), first)


def test_what_is_merged_is_the_mean():
    model = adapted(sample_at_inference=True)
    model.get_base_model()[0].adapters["default"].sample_at_inference = False
    expected = model(X)
    model.get_base_model()[0].adapters["default"].sample_at_inference = True
    torch.testing.assert_close(model.merge_and_unload()(X), expected)


def test_only_the_vectors_train():
    assert sum(p.numel() for p in adapted().parameters() if p.requires_grad) == 10 + 2 * 3


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        pytest.param({"projection_prng_key": 1}, {"save_projection": False}, "another seed", id="another seed"),
        pytest.param({"r": 4}, {}, "of another shape", id="another rank"),
    ],
)
def test_files_of_other_projections_are_refused(written, read, message):
    state, model = get_peft_model_state_dict(adapted(**written)), adapted(**read)
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=message):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"pvera_dropout": 1.0}, "pvera_dropout"),
        ({"generator_seed": "seed"}, "generator_seed"),
        ({"generator_seed": 2**64}, "generator_seed"),
        ({"sample_at_inference": 1}, "sample_at_inference"),
        ({"projection_prng_key": 2**64}, "projection_prng_key"),
        ({"bias": "vera_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"PveraConfig\.{field}: "):
        PveraConfig(**options)


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(8, 2), nn.Embedding(5, 4, max_norm=1.0), nn.LayerNorm(4)])
def test_layers_without_features_to_draw_are_refused(layer):
    model = nn.ModuleDict({"layer": layer})
    before = Snapshot.of(model)
    with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
        get_peft_model(model, PveraConfig(r=2, target_modules=["layer"]))
    before.assert_same(model, "After a layer was refused", "")
