"""OSF's own mathematics: which directions are frozen, and that gradients stay orthogonal to them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import ConfigError
from peftcore.testing import Snapshot, perturb
from peftcore_osf import OsfConfig

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def base(dtype=torch.float32):
    """Return a tall, a wide and a square layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 4)).to(dtype)


def config(**options):
    return OsfConfig(**{"effective_rank": 2, "target_modules": ["0", "2", "4"], **options})


def adapted(model=None, moved=True, **options):
    model = get_peft_model(model or base(), config(**options))
    if moved:
        perturb(model)
    return model


def adapters(model):
    return [model.get_base_model().get_submodule(path).adapters["default"] for path in ("0", "2", "4")]


def directions(adapter, rank=2):
    """Return U's and V's frozen directions, as columns."""
    u, _, vh = torch.linalg.svd(adapter.base.weight().detach().double(), full_matrices=False)
    return u[:, :rank], vh[:rank].T


def overlap(adapter, u, v, rank=2):
    """Return how much of ``[out, k]`` and ``[k, in]`` lies along the frozen directions, as a share of the whole."""
    strong_u, strong_v = directions(adapter, rank)
    return max((strong_u.T @ u.double()).norm() / u.norm(), (strong_v.T @ v.double().T).norm() / v.norm()).item()


def gradients(adapter):
    return adapter.osf_svd_params["U_low"].grad, adapter.osf_svd_params["V_low"].grad


def backward(model, x=X):
    (model(x).square().sum() + model(x).exp().mean()).backward()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_strong_directions_stay_and_the_rest_is_replaced(rank):
    for adapter in adapters(adapted(effective_rank=rank)):
        weight, held = adapter.base.weight(), adapter.osf_svd_params
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        changed, _ = adapter.fold(weight, None)
        kept = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close(changed, kept + held["U_low"] * held["S_low"] @ held["V_low"], atol=1e-5, rtol=1e-4)


def test_it_starts_with_the_weak_directions():
    for adapter in adapters(adapted(moved=False)):
        u, s, vh = torch.linalg.svd(adapter.base.weight(), full_matrices=False)
        held = adapter.osf_svd_params
        torch.testing.assert_close(held["S_low"], s[2:], atol=1e-5, rtol=1e-4)
        signs = (held["U_low"] * u[:, 2:]).sum(0).sign()
        torch.testing.assert_close(held["U_low"] * signs, u[:, 2:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(signs.unsqueeze(1) * held["V_low"], vh[2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_are_the_projected_ones_and_no_others(rank):
    """Against automatic differentiation of the formula, layer by layer."""
    for adapter in adapters(adapted(effective_rank=rank)):
        weight, held = adapter.base.weight(), adapter.osf_svd_params
        x = torch.randn(7, weight.shape[1])
        adapter.delta_forward(x).exp().sum().backward()
        u, s, v = (held[name].detach().clone().requires_grad_() for name in ("U_low", "S_low", "V_low"))
        u0, s0, v0 = adapter.started()
        (x @ (u * s @ v - u0 * s0 @ v0).T).exp().sum().backward()
        strong_u, strong_v = (basis.float() for basis in directions(adapter, rank))
        torch.testing.assert_close(held["S_low"].grad, s.grad, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(held["U_low"].grad, u.grad - strong_u @ (strong_u.T @ u.grad), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(held["V_low"].grad, v.grad - v.grad @ strong_v @ strong_v.T, atol=1e-4, rtol=1e-3)
        assert overlap(adapter, u.grad, v.grad, rank) > 1e-2, "the formula's own gradient is orthogonal already"


def by_state_dict(model):
    other = adapted()
    other.load_state_dict(model.state_dict())
    return other


def by_assigned_state_dict(model):
    other = adapted()
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def by_adapter_state(model):
    other = adapted()
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    return other


def by_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    return PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)


def by_file_without_memory(model, tmp_path):
    model.save_pretrained(tmp_path)
    return PeftModel.from_pretrained(base(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)


def by_torch_save(model, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    return torch.load(tmp_path / "model.pt", weights_only=False)


def by_parameters_replaced(model):
    for adapter in adapters(model):
        held = adapter.osf_svd_params
        for name in list(held):
            held[name] = nn.Parameter(held[name].detach().clone())
    return model


def by_coming_and_going(model):
    model.merge_adapter()
    model.unmerge_adapter()
    with model.disable_adapter():
        model(X)
    model.add_adapter("other", config(effective_rank=1))
    model.set_adapter("other")
    model.set_adapter("default")
    return model


JOURNEYS = {
    "state_dict": lambda model, _: by_state_dict(model),
    "state_dict, assigned": lambda model, _: by_assigned_state_dict(model),
    "adapter's state": lambda model, _: by_adapter_state(model),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch_save,
    "file": by_file,
    "file, low_cpu_mem_usage": by_file_without_memory,
    "other parameters": lambda model, _: by_parameters_replaced(model),
    "double": lambda model, _: model.double(),
    "merged and back, another adapter": lambda model, _: by_coming_and_going(model),
}


@pytest.mark.parametrize("journey", JOURNEYS.values(), ids=JOURNEYS)
def test_gradients_stay_orthogonal_whatever_the_model_goes_through(journey, tmp_path):
    travelled = journey(adapted(), tmp_path).train()
    x = X.to(next(travelled.parameters()).dtype)
    expected = adapted()
    backward(expected)
    backward(travelled, x)
    for adapter, same in zip(adapters(travelled), adapters(expected), strict=True):
        for gradient, other in zip(gradients(adapter), gradients(same), strict=True):
            torch.testing.assert_close(gradient.float(), other, atol=1e-4, rtol=1e-3)
        assert overlap(adapter, *gradients(adapter)) < 1e-5


def test_accumulated_gradients_are_the_sum_of_the_projected_ones():
    model = adapted()
    single = []
    for rows in (X[:2], X[2:]):
        model.zero_grad()
        backward(model, rows)
        single.append([gradient.clone() for adapter in adapters(model) for gradient in gradients(adapter)])
    model.zero_grad()
    for rows in (X[:2], X[2:]):
        backward(model, rows)
    accumulated = [gradient for adapter in adapters(model) for gradient in gradients(adapter)]
    for total, first, second in zip(accumulated, *single, strict=True):
        torch.testing.assert_close(total, first + second)
    assert max(overlap(adapter, *gradients(adapter)) for adapter in adapters(model)) < 1e-5


def test_checkpointed_and_compiled_gradients_are_projected_too():
    expected, model = adapted(), adapted()
    backward(expected)
    for run in (
        lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False),
        torch.compile(model, backend="aot_eager", fullgraph=True),
    ):
        model.zero_grad()
        backward(run)
        for adapter, same in zip(adapters(model), adapters(expected), strict=True):
            torch.testing.assert_close(gradients(adapter), gradients(same), atol=1e-4, rtol=1e-3)


def train(model, make_optimizer, steps=30):
    optimizer = make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    target = torch.randn(5, 4, generator=torch.Generator().manual_seed(5))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


LINEAR = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.2),
    "momentum, weight decay": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
}
ANY = {**LINEAR, "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.05)}


@pytest.mark.parametrize("make_optimizer", LINEAR.values(), ids=LINEAR)
def test_what_takes_steps_along_gradients_stays_in_the_free_directions(make_optimizer):
    model = adapted(moved=False)
    train(model, make_optimizer)
    for adapter in adapters(model):
        held = adapter.osf_svd_params
        assert overlap(adapter, held["U_low"], held["V_low"]) < 1e-5


@pytest.mark.parametrize("projects", [False, True])
@pytest.mark.parametrize("make_optimizer", ANY.values(), ids=ANY)
def test_projected_weights_keep_the_strong_part_whatever_trains_them(make_optimizer, projects):
    model = adapted(moved=False, project_weights=projects)
    train(model, make_optimizer)
    for adapter in adapters(model):
        changed, _ = adapter.fold(adapter.base.weight(), None)
        u, v = directions(adapter)
        change = (changed - adapter.base.weight()).detach().double()
        leaves = make_optimizer is ANY["AdamW"] and not projects
        assert ((u.T @ change).norm() + (change @ v).norm() > 1e-3) == leaves


@pytest.mark.parametrize("merges", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unmerging_gives_the_frozen_weights_back(merges, dtype):
    model = adapted(base(dtype))
    frozen = [weight.clone() for weight in base(dtype).parameters()]
    expected = model(X.to(dtype))
    for _ in range(merges):
        model.merge_adapter()
        torch.testing.assert_close(model(X.to(dtype)), expected)
        model.unmerge_adapter()
    torch.testing.assert_close(model(X.to(dtype)), expected)
    torch.testing.assert_close(list(model.unload().parameters()), frozen)


def test_a_second_task_starts_from_the_merged_weight():
    first = adapted().merge_and_unload()
    merged = {path: first.get_submodule(path).weight.detach().clone() for path in ("0", "2", "4")}
    second = adapted(first, effective_rank=3)
    for path, adapter in zip(merged, adapters(second), strict=True):
        changed, _ = adapter.fold(adapter.base.weight(), None)
        u, s, vh = torch.linalg.svd(merged[path], full_matrices=False)
        held = adapter.osf_svd_params
        kept = u[:, :3] * s[:3] @ vh[:3]
        torch.testing.assert_close(changed, kept + held["U_low"] * held["S_low"] @ held["V_low"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_loaded_adapter_finds_the_same_directions(low_cpu_mem_usage, tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(X), model(X))


def test_files_hold_what_trains_alone():
    names = {name.rpartition(".0.")[2] for name in get_peft_model_state_dict(adapted()) if ".0." in name}
    assert names == {"osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"}


def test_directions_are_told_apart_where_float32_could_not_square():
    layer = nn.Linear(9, 12)
    u, v = (torch.linalg.qr(torch.randn(size, 9, dtype=torch.float64)).Q for size in (12, 9))
    with torch.no_grad():
        layer.weight.copy_(u * 4.0 ** -torch.arange(9) @ v.T)
    model = get_peft_model(nn.Sequential(layer), config(effective_rank=6, target_modules=["0"]))
    adapter = model.get_base_model()[0].adapters["default"]
    assert overlap(adapter, adapter.osf_U_start, adapter.osf_V_start, rank=6) < 1e-6


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("out", "into"), [(6, 6), (5, 8), (8, 5)])
def test_directions_of_no_strength_train_too(out, into, rank):
    torch.manual_seed(0)
    layer = nn.Linear(into, out)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(out, rank) @ torch.randn(rank, into))
    model = get_peft_model(nn.Sequential(layer), config(target_modules=["0"]))
    (adapter,) = (module.adapters["default"] for module in model.get_base_model())
    x, target = torch.randn(20, into), torch.randn(20, out)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        assert adapter.osf_svd_params["S_low"].grad.all()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(adapter))
    changed, _ = adapter.fold(adapter.base.weight(), None)
    change = (changed - adapter.base.weight()).double()
    assert change.norm() > 1e-3
    u, v = directions(adapter, rank)
    assert (u.T @ change).norm() + (change @ v).norm() < 1e-5


@pytest.mark.parametrize(
    ("asked", "frozen"), [(None, [3, 2, 2]), (1, [1, 1, 1]), (3, [3, 3, 3]), (0.75, [4, 3, 3]), (2.0, [2, 2, 2])]
)
def test_how_many_directions_are_frozen(asked, frozen):
    held = [adapter.osf_svd_params["S_low"].numel() for adapter in adapters(adapted(effective_rank=asked))]
    assert held == [most - rank for most, rank in zip([6, 4, 4], frozen, strict=True)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"effective_rank": 0}, "effective_rank"),
        ({"effective_rank": -0.5}, "effective_rank"),
        ({"effective_rank": 2.5}, "effective_rank"),
        ({"effective_rank": "half"}, "effective_rank"),
        ({"effective_rank": True}, "effective_rank"),
        ({"rank_pattern": {"0": 0}}, "rank_pattern"),
        ({"rank_pattern": {"0": 1.5}}, "rank_pattern"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern"),
        ({"init_weights": "svd"}, "init_weights"),
        ({"target_svd_config": {"0": 0.5}}, "target_svd_config"),
        ({"project_weights": None}, "project_weights"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"OsfConfig\.{field}: "):
        config(**options)


@pytest.mark.parametrize("asked", [4, 100, 0.1, 1.0])
def test_freezing_nothing_or_all_of_a_layer_is_refused(asked):
    model = base()
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"OsfConfig\.effective_rank: .* singular directions of a Linear"):
        get_peft_model(model, config(effective_rank=asked))
    before.assert_same(model, "After a config was refused", "")
