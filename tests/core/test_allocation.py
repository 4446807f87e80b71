"""A budget that adapters' parts share: what is measured, who gets it, and when it falls."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftcore import LayerConfig, PeftMethod, get_peft_model, option, register_peft_method, unregister_peft_method
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.allocation import AllocatedAdapter, AllocatingTuner, Importance, falling
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import StepError
from peftcore.testing import Snapshot, perturb

from .models import Net


class SharingConfig(LayerConfig, method="sharing"):
    r: int = option(3, "Rank.", at_least=1)
    budget: int = option(2, "Ranks of all layers together.", at_least=0)


class SharingAdapter(AllocatedAdapter, LowRankDelta):
    """A product of two factors, whose ranks share a budget."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        out, into = base.matrix_shape
        self.sharing_A = nn.Parameter(torch.randn(config.r, into))
        self.sharing_B = nn.Parameter(torch.zeros(out, config.r))

    def factors(self):
        return self.sharing_A, self.sharing_B

    def scores(self, importance):
        return importance.of("sharing_A").mean(1) + importance.of("sharing_B").mean(0)

    @torch.no_grad()
    def keep(self, kept):
        self.sharing_B.masked_fill_(~kept, 0.0)


class SharingTuner(AllocatingTuner):
    parts = "ranks"

    def after_step(self, global_step):
        self.measure(0.5, 0.5)
        self.kept = self.allocate(self.config.budget)


@pytest.fixture(autouse=True, scope="module")
def sharing():
    method = PeftMethod(config_cls=SharingConfig, adapter_cls=SharingAdapter, tuner_cls=SharingTuner)
    register_peft_method(method)
    yield
    unregister_peft_method("sharing")


def adapted(**options):
    model = get_peft_model(Net(), SharingConfig(**{"target_modules": ["one", "two"], **options}))
    perturb(model)
    return model


def backward(model, read=lambda output: output):
    model.zero_grad()
    read(model(torch.randn(8, 5))).square().sum().backward()


# ------------------------------------------------------------------------------------------------ importance


@pytest.mark.parametrize(("beta1", "beta2"), [(0.85, 0.85), (0.5, 0.9)])
def test_importance_is_the_papers_up_to_a_factor_that_all_entries_share(beta1, beta2):
    """There the uncertainty is how far a step is from the new mean, which is beta1 times as far as from the old."""
    module, importance = nn.Linear(3, 2), Importance(beta1, beta2)
    mean = uncertainty = torch.zeros(2, 3)
    for _ in range(4):
        module.weight.grad = torch.randn(2, 3)
        sensitivity = (module.weight * module.weight.grad).abs().detach()
        mean = beta1 * mean + (1 - beta1) * sensitivity
        uncertainty = beta2 * uncertainty + (1 - beta2) * (sensitivity - mean).abs()
        importance.update(module)
    torch.testing.assert_close(importance.of("weight") * beta1, mean * uncertainty)


def test_without_memory_importance_is_that_of_the_last_step():
    module, importance = nn.Linear(3, 2), Importance(0.0, 0.0)
    for gradient in (1.0, 5.0, 2.0):
        module.weight.grad = torch.full((2, 3), gradient)
        importance.update(module)
    torch.testing.assert_close(importance.of("weight"), module.weight.detach().abs().square() * 2 * (5 - 2))


def test_what_no_loss_depends_on_has_no_importance():
    module, importance = nn.Linear(3, 2), Importance(0.5, 0.5)
    for _ in range(2):
        module.weight.grad = torch.randn(2, 3)
        importance.update(module)
    assert importance.of("weight").gt(0).all()
    assert torch.equal(importance.of("bias"), torch.zeros(2))


# ------------------------------------------------------------------------------------------------- the tuner


def test_the_most_important_parts_of_all_layers_are_kept():
    model = adapted(budget=4)
    tuner = model.base_model.tuner("default")
    for step in range(3):
        backward(model)
        model.update_and_allocate(step)
    scores = {path: adapter.scores(tuner.importance[path]) for path, adapter in tuner.adapters.items()}
    least = torch.cat([*scores.values()]).sort(descending=True).values[3]
    for path, adapter in tuner.adapters.items():
        assert torch.equal(tuner.kept[path], scores[path] >= least)
        assert torch.equal(adapter.sharing_B.any(0), tuner.kept[path])
    assert sum(int(mask.sum()) for mask in tuner.kept.values()) == 4


@given(budget=st.integers(0, 8))
def test_a_budget_is_spent_even_where_nothing_is_more_important_than_the_rest(budget):
    """And then on the first ones, so that two runs do the same."""
    model = adapted()
    tuner = model.base_model.tuner("default")
    for parameter in tuner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tuner.measure(0.5, 0.5)
    kept = torch.cat([*tuner.allocate(budget).values()])
    assert kept.tolist() == [number < budget for number in range(6)]


def test_a_layer_on_which_no_loss_depends_gets_nothing():
    class Idle(Net):
        def forward(self, x):
            return self.one(x)

    model = get_peft_model(Idle(), SharingConfig(target_modules=["one", "two"], budget=3))
    perturb(model)
    for step in range(2):
        backward(model)
        model.update_and_allocate(step)
    assert {path: mask.tolist() for path, mask in model.base_model.tuner("default").kept.items()} == {
        "one": [True] * 3,
        "two": [False] * 3,
    }


def test_parts_of_a_fused_layer_share_the_budget():
    model = get_peft_model(Net(), SharingConfig(target_modules=["a"], canonical_modules={"one": ["a", "b"]}))
    tuner = model.base_model.tuner("default")
    backward(model)
    model.update_and_allocate(0)
    assert set(tuner.adapters) == set(tuner.kept) == {"a"}


def test_a_copy_measures_for_itself():
    model = adapted()
    backward(model)
    model.update_and_allocate(0)
    twin = copy.deepcopy(model)
    tuner, copied = model.base_model.tuner("default"), twin.base_model.tuner("default")
    before = tuner.importance["one"].of("sharing_A")
    backward(twin)
    twin.update_and_allocate(1)
    assert torch.equal(tuner.importance["one"].of("sharing_A"), before)
    assert not torch.equal(copied.importance["one"].of("sharing_A"), before)
    assert copied.adapters["one"] is twin.get_base_model().one.adapters["default"]


def test_without_gradients_a_step_is_refused_and_nothing_has_changed():
    model = adapted()
    before = Snapshot.of(model)
    with pytest.raises(StepError, match=r"'default' .sharing. has no gradients .* which ranks matter.*zero_grad"):
        model.update_and_allocate(0)
    before.assert_same(model, "After a step without gradients", "")
    assert not model.base_model.tuner("default").importance


def test_stacked_experts_can_not_be_weighed():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, 5))

    assert SharingAdapter.can_adapt(adapt(nn.Linear(5, 4)))
    assert not SharingAdapter.can_adapt(ParameterLayer(Experts(), "weight"))


# --------------------------------------------------------------------------------------------------- budgets

BUDGETS = st.floats(0, 100)


@given(
    first=st.integers(0, 50),
    length=st.integers(1, 50),
    start=BUDGETS,
    end=BUDGETS,
    exponent=st.floats(0.1, 8),
)
def test_a_budget_falls_from_its_start_to_its_end(first, length, start, end, exponent):
    start, end = max(start, end), min(start, end)
    budgets = [falling(step, first, first + length, start, end, exponent) for step in range(first + length + 3)]
    assert budgets == pytest.approx(sorted(budgets, reverse=True))
    assert budgets[: first + 1] == pytest.approx([start] * (first + 1))
    assert budgets[first + length :] == [end] * 3


def test_a_budget_falls_as_a_power():
    assert [falling(step, 2, 6, 10, 2) for step in (3, 4, 5)] == [2 + 8 * left**3 for left in (0.75, 0.5, 0.25)]
    assert [falling(step, 2, 6, 10, 2, 1) for step in (3, 4, 5)] == [8, 6, 4]


# -------------------------------------------------------------------------------------- transformers' Trainer


def test_the_trainer_tells_adapters_of_each_step_while_there_are_gradients(tmp_path):
    transformers = pytest.importorskip("transformers")
    from peftcore.trainer_callback import UpdateAndAllocate

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x, labels):
            return {"loss": (self.net(x) - labels).square().mean()}

    model = get_peft_model(Labelled(), SharingConfig(target_modules=["one", "two"]))
    steps, told = [], model.update_and_allocate
    model.update_and_allocate = lambda step: (steps.append(step), told(step))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"x": torch.randn(5), "labels": torch.randn(3)} for _ in range(12)]
    transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[UpdateAndAllocate()]).train()
    assert steps == [0, 1, 2]
    assert sum(int(mask.sum()) for mask in model.base_model.tuner("default").kept.values()) == 2
