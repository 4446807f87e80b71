"""AdaMSS's own mathematics: clusters, their subspaces, and which ones go on training."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import CheckpointError, ConfigError, StepError
from peftcore.testing import Snapshot, perturb
from peftcore_adamss import AdamssConfig

X = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))


def base(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24, bias=bias), nn.Tanh(), nn.Linear(24, 12, bias=bias))


def config(**options):
    return AdamssConfig(**{"r": 6, "num_subspaces": 4, "subspace_rank": 2, "target_modules": ["0", "2"], **options})


def adapted(model=None, moved=True, **options):
    model = get_peft_model(model or base(), config(**options))
    if moved:
        perturb(model)
    return model


def adapters(model):
    return [model.get_base_model().get_submodule(path).adapters["default"] for path in ("0", "2")]


def outputs_of(adapter):
    """Return each cluster's outputs."""
    owners = torch.cat([torch.full((len(b),), k) for k, b in enumerate(adapter.adamss_B)])[adapter.places]
    return [(owners == k).nonzero().squeeze(1) for k in range(len(adapter.adamss_B))]


def planted(groups=4, out=24, into=10, spread=0.05):
    """Return a layer whose outputs are near to one of a few, and which of these each is near to."""
    torch.manual_seed(1)
    layer, truth = nn.Linear(into, out), torch.randperm(out) % groups
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(into, groups)).Q.T[truth] * 3 + spread * torch.randn(out, into))
        layer.bias.copy_(torch.randn(groups)[truth])
    return layer, truth


@pytest.mark.parametrize("bias", [True, False])
def test_each_cluster_changes_by_its_own_product(bias):
    """Written out, output by output, from what files hold."""
    for adapter in adapters(adapted(base(bias))):
        weight, frozen_bias = adapter.base.weight(), adapter.base.bias
        changed, changed_bias = adapter.fold(weight, frozen_bias)
        assert adapter.adamss_newB.shape == (6, weight.shape[1] + bias)
        for outputs, a, b in zip(outputs_of(adapter), adapter.adamss_A, adapter.adamss_B, strict=True):
            change = b @ a @ adapter.adamss_newB
            torch.testing.assert_close(changed[outputs], weight[outputs] + change[:, : weight.shape[1]])
            if bias:
                torch.testing.assert_close(changed_bias[outputs], frozen_bias[outputs] + change[:, -1])
        assert bias or changed_bias is None


def test_the_basis_is_the_leading_right_singular_vectors_of_weight_and_bias():
    layer, _ = planted()
    (adapter, _) = adapters(adapted(nn.Sequential(layer, nn.Tanh(), nn.Linear(24, 12)), moved=False, r=4))
    framed = torch.cat([layer.weight, layer.bias[:, None]], 1)
    vectors = torch.linalg.svd(framed).Vh[:4]
    torch.testing.assert_close((adapter.adamss_newB @ vectors.T).abs(), torch.eye(4), atol=1e-3, rtol=0)


def test_outputs_that_are_alike_share_a_cluster():
    layer, truth = planted(groups=2)
    model = adapted(nn.Sequential(layer, nn.Tanh(), nn.Linear(24, 12)), r=2, num_subspaces=2)
    found = outputs_of(adapters(model)[0])
    assert torch.cat(found).sort().values.tolist() == list(range(24))
    assert all(len(set(truth[outputs].tolist())) == 1 for outputs in found)


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_a_cluster_starts_with_the_directions_of_its_outputs(rank):
    """Of all subspaces of its rank, the rows of A span the one nearest to the outputs' left singular vectors."""
    model = adapted(moved=False, subspace_rank=rank)
    for adapter in adapters(model):
        weight = torch.cat([adapter.base.weight(), adapter.base.bias[:, None]], 1).detach()
        # U · S = W · Vᵀ where V holds exactly; the decomposition is by few iterations, so near to it.
        left = weight @ adapter.adamss_newB.T
        left = left / left.norm(dim=0)
        for outputs, a in zip(outputs_of(adapter), adapter.adamss_A, strict=True):
            assert len(a) == min(rank, len(outputs))
            torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-5, rtol=0)
            held, best = (left[outputs] @ a.T).norm(dim=0), torch.linalg.svdvals(left[outputs])[: len(a)]
            assert held.square().sum() > 0.9 * best.square().sum()
            assert torch.equal(held.argsort(descending=True, stable=True), torch.arange(len(a)))
    torch.testing.assert_close(model(X), base()(X))


def test_dynamic_ranks_are_those_of_the_outputs():
    """The outputs of each cluster lie on one line; without the limit they would get three directions."""
    layer, _ = planted(groups=2, spread=0.0)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(1, 1.3, 24)[:, None])
        layer.bias.zero_()
    for dynamic, ranks in ((False, [2, 2]), (True, [1, 1])):
        model = get_peft_model(
            nn.Sequential(copy.deepcopy(layer)),
            config(r=2, num_subspaces=2, use_dynamic_rank=dynamic, svd_threshold=0.05, target_modules=["0"]),
        )
        adapter = model.get_base_model()[0].adapters["default"]
        assert [len(a) for a in adapter.adamss_A] == ranks


def test_torchs_generator_stays_as_it_is():
    model = base()
    state = torch.random.get_rng_state()
    adapted(model, moved=False)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_loaded_adapter_finds_the_same_clusters(low_cpu_mem_usage, tmp_path):
    model = adapted(random_seed=4)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(X), model(X))
    for one, other in zip(adapters(loaded), adapters(model), strict=True):
        assert torch.equal(one.places, other.places)


def test_a_file_with_clusters_of_other_sizes_is_refused():
    model = adapted()
    state = get_peft_model_state_dict(model)
    name = next(name for name in state if "adamss_B.0" in name)
    state[name] = state[name][1:]
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=r"adamss_B\.0"):
        set_peft_model_state_dict(model, state)
    before.assert_same(model, "After a file was refused", "")


# ------------------------------------------------------------------------------- adaptive subspace allocation

SCHEDULE = {"use_asa": True, "init_warmup": 3, "final_warmup": 11, "mask_interval": 4, "asa_schedule_exponent": 1.5}


def train(model, steps, start=0, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    target = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
    for step in range(start, start + steps):
        optimizer.zero_grad(set_to_none=False)  # the optimizer goes on moving what has a gradient of zero
        (model(X) - target).square().mean().backward()
        optimizer.step()
        model.update_and_allocate(step)
    return optimizer


def training(model):
    return [
        (path, k)
        for path, adapter in enumerate(adapters(model))
        for k, (a, b) in enumerate(zip(adapter.adamss_A, adapter.adamss_B, strict=True))
        if a.requires_grad and b.requires_grad
    ]


@pytest.mark.parametrize("target", [1, 3, 7, 8, 50])
def test_as_many_clusters_train_as_the_schedule_says(target):
    model = adapted(moved=False, asa_target_subspaces=target, **SCHEDULE)
    optimizer = train(model, 0)
    for step in range(16):
        train(model, 1, step, optimizer)
        due = [s for s in range(3, min(step, 11) + 1) if s % 4 == 0 or s == 11]
        left = (1 - (due[-1] - 3) / 8) if due else 1.0
        assert len(training(model)) == min(8, int(target + max(0, 8 - target) * left**1.5))


def test_what_is_frozen_stays_and_the_rest_learns():
    model = adapted(moved=False, asa_target_subspaces=2, **SCHEDULE)
    optimizer = train(model, 12)
    left, before = set(training(model)), copy.deepcopy(model)
    train(model, 3, 12, optimizer)
    assert len(left) == 2 and set(training(model)) == left
    for number, (now, then) in enumerate(zip(adapters(model), adapters(before), strict=True)):
        for k in range(4):
            assert torch.equal(now.adamss_B[k], then.adamss_B[k]) == ((number, k) not in left)
            assert (now.adamss_A[k].grad is None) == ((number, k) not in left)


def test_the_clusters_on_which_the_loss_depends_go_on():
    """The loss reads two outputs alone, so the clusters of these matter."""
    model = adapted(moved=False, asa_target_subspaces=2, init_weights=None, **SCHEDULE, target_modules=["2"])
    adapter = model.get_base_model()[2].adapters["default"]
    parts = outputs_of(adapter)
    wanted = sorted(range(4), key=lambda k: len(parts[k]))[:2]
    read = [parts[k][0].item() for k in wanted]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(12):
        optimizer.zero_grad()
        (model(X)[:, read] - 1).square().mean().backward()
        optimizer.step()
        model.update_and_allocate(step)
    assert [k for k in range(4) if k not in adapter.frozen] == sorted(wanted)


def step_with(model, step, gradients):
    """Take a step after which each parameter of a cluster is 1, and has its cluster's gradient."""
    for _, k, parameter in clusters_of(model):
        with torch.no_grad():
            parameter.fill_(1.0)
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, gradients[k])
    model.update_and_allocate(step)


def clusters_of(model):
    adapter = model.get_base_model()[2].adapters["default"]
    return [(adapter, k, parts[k]) for parts in (adapter.adamss_A, adapter.adamss_B) for k in range(len(parts))]


def test_each_choice_counts_what_came_since_the_one_before():
    model = adapted(asa_target_subspaces=1, **SCHEDULE, target_modules=["2"])
    for step in range(9):
        step_with(model, step, (100.0, 5.0, 4.0, 0.1) if step <= 4 else (1.0, 5.0, 4.0, 9.0))
    assert clusters_of(model)[0][0].frozen == {0, 2, 3}


def test_large_clusters_are_not_preferred():
    model = adapted(asa_target_subspaces=1, **SCHEDULE, target_modules=["2"])
    sizes = [len(part) for part in outputs_of(clusters_of(model)[0][0])]
    assert max(sizes) > 2 * min(sizes)
    for step in range(12):
        step_with(model, step, [1 + 0.01 / size for size in sizes])
    assert clusters_of(model)[0][0].frozen == set(range(4)) - {sizes.index(min(sizes))}


def test_frozen_clusters_stay_frozen_when_adapters_are_switched_and_copied():
    model = adapted(moved=False, asa_target_subspaces=2, **SCHEDULE)
    train(model, 12)
    left = training(model)
    model.add_adapter("other", config())
    model.set_adapter("other")
    assert training(model) == []
    model.set_adapter("default")
    assert training(model) == left
    again = copy.deepcopy(model)
    again.set_adapter("default")
    assert training(again) == left


def test_without_use_asa_nothing_is_frozen():
    model = adapted(moved=False, asa_target_subspaces=1, **{**SCHEDULE, "use_asa": False})
    train(model, 14)
    assert len(training(model)) == 8


def test_without_gradients_there_is_an_error_and_nothing_changes():
    model = adapted(asa_target_subspaces=2, **SCHEDULE)
    before = Snapshot.of(model)
    with pytest.raises(StepError, match="after loss\\.backward"):
        model.update_and_allocate(4)
    before.assert_same(model, "After a step without gradients", "")
    model.update_and_allocate(2)  # before init_warmup nothing is measured


def test_the_callback_calls_it_with_the_trainers_step():
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from peftcore_adamss.asa_callback import AdamssAsaCallback

    model = adapted(moved=False, asa_target_subspaces=2, **SCHEDULE)
    train(model, 11)
    (model(X).square().mean()).backward()
    arguments = TrainingArguments(report_to=[], use_cpu=True)
    AdamssAsaCallback().on_optimizer_step(arguments, TrainerState(global_step=11), TrainerControl(), model=model)
    assert len(training(model)) == 2


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 50),
    length=st.integers(1, 100),
    target=st.integers(1, 60),
    more=st.integers(0, 60),
    exponent=st.floats(0.1, 8),
)
def test_the_budget_falls_from_all_to_the_target(start, length, target, more, exponent):
    asked = config(
        init_warmup=start, final_warmup=start + length, asa_target_subspaces=target, asa_schedule_exponent=exponent
    )
    budgets = [asked.budget(step, target + more) for step in range(start, start + length + 3)]
    assert budgets[0] == target + more and budgets[length:] == [target] * 3
    assert budgets == sorted(budgets, reverse=True)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"r": 0}, "r"),
        ({"num_subspaces": 0}, "num_subspaces"),
        ({"subspace_rank": 0}, "subspace_rank"),
        ({"r": 3, "subspace_rank": 4}, "subspace_rank"),
        ({"init_weights": True}, "init_weights"),
        ({"asa_target_subspaces": 0}, "asa_target_subspaces"),
        ({"use_asa": True, "init_warmup": 50, "final_warmup": 50}, "final_warmup"),
        ({"mask_interval": 0}, "mask_interval"),
        ({"asa_importance_beta": 1.0}, "asa_importance_beta"),
        ({"asa_uncertainty_beta": -0.1}, "asa_uncertainty_beta"),
        ({"asa_schedule_exponent": 0.0}, "asa_schedule_exponent"),
        ({"svd_threshold": -0.1}, "svd_threshold"),
        ({"random_seed": 2**63}, "random_seed"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_wrong_values_are_refused_when_the_config_is_made(options, field):
    with pytest.raises(ConfigError, match=rf"AdamssConfig\.{field}: "):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_subspaces": 13}, r"num_subspaces: 13 is above the 12 outputs of a Linear"),
        ({"r": 20, "subspace_rank": 12}, r"subspace_rank: 12 is above the 11 singular values of a Linear"),
    ],
)
def test_a_layer_that_is_too_small_is_refused(options, message):
    model = base()
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=message):
        get_peft_model(model, config(**options))
    before.assert_same(model, "After a config was refused", "")


def test_a_layer_with_too_few_different_outputs_is_refused():
    model = base()
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:2].repeat(6, 1))
        model[2].bias.copy_(model[2].bias[:2].repeat(6))
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=r"num_subspaces: 4 is above the 2 clusters of the outputs of a Linear"):
        get_peft_model(model, config())
    before.assert_same(model, "After a config was refused", "")
