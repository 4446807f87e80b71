"""FactoredDelta: factors, their Tucker form, scaling and dropout."""

import pytest
import torch
from torch import nn

from peftcore import PeftMethod, get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.factored import FactoredConfig, FactoredDelta
from peftcore.adapters.recomputing import recomputed
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError

from .models import Single, same


class SplitConfig(FactoredConfig, method="split"):
    pass


class SplitAdapter(FactoredDelta):
    """Δ is one factor."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.split_a, self.split_b, self.split_t = self.split(*self.sizes)

    def delta_weight(self):
        return self.scaling * self.join(self.split_a, self.split_b, self.split_t)


class BareAdapter(SplitAdapter):
    rescales_kept = False


@pytest.fixture(autouse=True, scope="module")
def split_method():
    register_peft_method(PeftMethod(name="split", config_cls=SplitConfig, adapter_cls=SplitAdapter))
    yield
    unregister_peft_method("split")


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


def make(layer, cls=SplitAdapter, **options):
    base = adapt(layer) if isinstance(layer, nn.Module) else layer
    return cls(base, SplitConfig(**{"r": 2, **options}))


LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), lambda: torch.randn(3, 4, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), lambda: torch.randn(3, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), groups=2), lambda: torch.randn(3, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3)), lambda: torch.randn(3, 4, 3, 4, 5)),
    "embedding": (lambda: nn.Embedding(9, 5), lambda: torch.arange(9).reshape(3, 3)),
}
CONVS = [name for name in LAYERS if name.startswith("conv")]


@pytest.mark.parametrize("name", LAYERS)
def test_a_factor_has_the_rank(name):
    adapter = make(LAYERS[name][0](), r=2, alpha=6)
    delta = adapter.canonical_delta()
    assert delta.shape == adapter.base.weight_shape
    assert torch.linalg.matrix_rank(delta.reshape(adapter.base.matrix_shape)) == 2
    same(delta.reshape(adapter.base.matrix_shape), 3 * adapter.split_a @ adapter.split_b)


@pytest.mark.parametrize("name", CONVS)
def test_in_the_tucker_form_every_place_of_the_kernel_has_a_matrix_between_the_channels(name):
    adapter = make(LAYERS[name][0](), use_effective_conv2d=True, alpha=6)
    delta = adapter.canonical_delta().flatten(2)
    cores = adapter.split_t.flatten(2)
    assert cores.shape == (2, 2, delta.shape[2])
    for place in range(delta.shape[2]):
        same(delta[..., place], 3 * adapter.split_a.T @ cores[..., place] @ adapter.split_b)


def test_a_core_of_one_dimension_has_one_more_in_files():
    assert make(nn.Conv1d(4, 6, 3), use_effective_conv2d=True).state_dict()["split_t"].shape == (2, 2, 3, 1)


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(4, 6, 1), nn.Embedding(9, 5)])
def test_where_there_is_no_kernel_there_is_no_core(layer):
    assert make(layer, use_effective_conv2d=True).split_t is None


def test_each_stacked_expert_has_factors_of_its_own():
    adapter = make(ParameterLayer(Holder(3, 5, 7), "weight"), alpha=4)
    assert adapter.split_a.shape == (3, 5, 2)
    same(adapter.canonical_delta(), 2 * torch.einsum("eor,eri->eoi", adapter.split_a, adapter.split_b))
    assert make(ParameterLayer(Holder(1, 5, 7), "weight")).canonical_delta().shape == (1, 5, 7)


@pytest.mark.parametrize("shape", [(40, 50), (20, 10, 3, 3)])
@pytest.mark.parametrize("stack", [1, 4])
def test_factors_start_as_torch_s_own_layers(shape, stack):
    ours = make(ParameterLayer(Holder(stack, 5, 7), "weight")).uniform(*shape)
    theirs = torch.empty(shape)
    nn.init.kaiming_uniform_(theirs, a=5**0.5)
    assert ours.shape == ((stack, *shape) if stack > 1 else shape)
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_the_patterns_reach_single_layers():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    patterns = {"rank_pattern": {"1": 3}, "alpha_pattern": {"0": 5}}
    get_peft_model(net, SplitConfig(r=2, alpha=4, target_modules=["0", "1"], **patterns))
    one, two = (net[place].adapters["default"] for place in (0, 1))
    assert (one.r, one.scaling, two.r, two.scaling) == (2, 2.5, 3, 4 / 3)


def test_what_is_computed_again_is_not_kept_and_gives_the_same_gradients():
    kept, (x, y) = [], (torch.randn(6, requires_grad=True) for _ in range(2))

    def function(x):
        return torch.outer(x, y).exp().tanh()

    expected = torch.autograd.grad(function(x).sum(), (x, y))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        output = recomputed(function, x)
    assert max(kept, default=0) <= 6
    same(output, function(x))
    torch.testing.assert_close(torch.autograd.grad(output.sum(), (x, y)), expected)
    with torch.no_grad():
        assert torch.equal(recomputed(function, x), function(x))


# ---------------------------------------------------------------------------------------------------- dropout


def shares(adapter, x, calls=100):
    """Return the share of Δ's output in each feature that training lets through, call by call: [calls, features]."""
    adapter.eval()
    whole = adapter.delta_forward(x)
    adapter.train()
    found = []
    for _ in range(calls):
        share = adapter.delta_forward(x) / whole
        features = share.movedim(-len(adapter.kernel) - 1, 0).flatten(1)
        torch.testing.assert_close(features, features[:, :1].expand_as(features))  # the same for all rows and places
        found.append(features[:, 0])
    return torch.stack(found).detach()


@pytest.mark.parametrize("name", LAYERS)
def test_rank_dropout_leaves_out_features_of_all_rows_and_makes_up_for_them(name):
    layer, x = LAYERS[name]
    found = shares(make(layer(), rank_dropout=0.4), x())
    kept = found > 0
    assert 0.3 < 1 - kept.float().mean() < 0.5
    assert len(kept.unique(dim=0)) > 10
    some = kept.any(1)
    torch.testing.assert_close(found[some].mean(1), torch.ones(int(some.sum())))


def test_rank_dropout_may_leave_the_rest_as_it_is():
    layer, x = LAYERS["linear"]
    found = shares(make(layer(), BareAdapter, rank_dropout=0.4), x())
    assert ((found - 1).abs().lt(1e-4) | (found == 0)).all() and (found == 0).any()


def test_where_every_feature_is_left_out_there_are_zeros():
    adapter = make(nn.Linear(7, 2), rank_dropout=0.9)
    outputs = torch.stack([adapter.delta_forward(torch.randn(3, 7)) for _ in range(20)])
    assert outputs.isfinite().all() and (outputs == 0).flatten(1).all(1).any()


def test_module_dropout_leaves_out_whole_calls():
    layer, x = LAYERS["conv2d"]
    found = shares(make(layer(), module_dropout=0.3), x())
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert (found == found[:, :1]).all()
    assert 0.2 < 1 - found.mean() < 0.4


@pytest.mark.parametrize("options", [{"rank_dropout": 0.9}, {"module_dropout": 0.9}], ids=str)
def test_merging_while_training_drops_nothing(options):
    model = get_peft_model(Single(nn.Linear(7, 5)), SplitConfig(target_modules=["layer"], **options)).eval()
    x = torch.randn(3, 7)
    expected = model(x)
    model.train()
    model.merge_adapter()
    same(model(x), expected)


@pytest.mark.parametrize("options", [{"rank_dropout": 0.1}, {"module_dropout": 0.1}], ids=str)
@pytest.mark.parametrize(
    "layer", [nn.MultiheadAttention(8, 2), ParameterLayer(Holder(5, 7), "weight")], ids=["attention", "parameter"]
)
def test_dropout_is_refused_where_the_weight_is_used_as_a_whole(options, layer):
    with pytest.raises(ConfigError, match=rf"SplitConfig\.{next(iter(options))}: .*exclude"):
        make(layer, **options)
    # What was trained otherwise can still be used.
    assert make(layer, inference_mode=True, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"rank_dropout": 1},
        {"module_dropout": -0.1},
        {"rank_pattern": {"0": 0}},
        {"alpha_pattern": {"0": "a"}},
    ],
    ids=str,
)
def test_values_out_of_bounds_are_refused(options):
    with pytest.raises(ConfigError, match=rf"SplitConfig\.{next(iter(options))}: "):
        SplitConfig(**options)
