"""AdaLoRA's own mathematics, its schedule, and what it refuses."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from peftcore import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.exceptions import ConfigError, StepError
from peftcore.testing import Snapshot, perturb
from peftcore_adalora import AdaLoraConfig

RANKS = {"init_r": 4, "target_r": 2, "total_step": 8, "tinit": 1, "tfinal": 2}


class Output(dict):
    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]

    __setattr__ = dict.__setitem__


class Net(nn.Module):
    """Two layers, one of which matters much less than the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.much, self.little = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x, labels=None):
        y = self.much(x) + self.little(x) / 100
        return Output(y=y) if labels is None else Output(y=y, loss=(y - labels).square().mean())


X, LABELS = torch.linspace(-1, 1, 32).reshape(4, 8).sin(), torch.linspace(2, -2, 24).reshape(4, 6)


def adapted(model=None, **options):
    config = AdaLoraConfig(**{**RANKS, "target_modules": ["much", "little"], **options})
    model = get_peft_model(Net() if model is None else model, config)
    perturb(model)
    return model


def train(model, steps=range(9)):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for step in steps:
        model(X, LABELS).loss.backward()
        optimizer.step()
        model.update_and_allocate(step)
        optimizer.zero_grad()
    return model


def ranks(model):
    return {name: int(p.count_nonzero()) for name, p in model.named_parameters() if "lora_E" in name}


def config_of(model):
    return model.peft_config["default"]


def test_delta_is_a_decomposition_and_factors_that_are_orthonormal_add_no_loss():
    model = adapted()
    tuner = model.base_model.tuner("default")
    adapter = tuner.adapters["much"]
    with torch.no_grad():
        for one in tuner.adapters.values():
            one.lora_A.copy_(torch.linalg.qr(torch.randn(8, 4)).Q.T)
            one.lora_B.copy_(torch.linalg.qr(torch.randn(6, 4)).Q)
    singular = torch.linalg.svdvals(adapter.delta_weight())[:4]
    expected = (adapter.lora_E.abs() * 8 / 4).flatten().sort(descending=True).values
    torch.testing.assert_close(singular, expected, rtol=1e-4, atol=1e-5)
    assert tuner.extra_loss().item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        adapter.lora_A.mul_(2)  # A · Aᵀ is 4 then, so the norm of the gap is 3 · √4, of one of four factors
    assert tuner.extra_loss().item() == pytest.approx(0.5 * 3 * 2 / 4, rel=1e-4)


def test_the_loss_is_added_to_the_task_s_while_the_adapter_trains():
    model = adapted(orth_reg_weight=2.0)
    extra = model.base_model.tuner("default").extra_loss()
    output = model(X, LABELS)
    torch.testing.assert_close(output.loss, (output.y - LABELS).square().mean() + extra)
    model.set_adapter("default", inference_mode=True)
    torch.testing.assert_close(model(X, LABELS).loss, (output.y - LABELS).square().mean())


@given(init=st.integers(2, 20), target=st.integers(1, 20), tinit=st.integers(0, 9), tfinal=st.integers(0, 9))
def test_the_budget_falls_from_init_r_to_target_r(init, target, tinit, tfinal):
    target = min(init, target)
    config = AdaLoraConfig(init_r=init, target_r=target, tinit=tinit, tfinal=tfinal, total_step=20)
    budgets = [config.budget(step) for step in range(25)]
    assert budgets == sorted(budgets, reverse=True)
    assert set(budgets[: tinit + 1]) == {init}
    assert set(budgets[20 - tfinal :]) == {target}


def test_ranks_go_to_the_layer_that_matters():
    model = train(adapted(orth_reg_weight=0.0))
    left = ranks(model)
    assert sum(left.values()) == 2 * RANKS["target_r"]
    assert next(n for name, n in left.items() if "much" in name) > next(
        n for name, n in left.items() if "little" in name
    )
    pattern = config_of(model).rank_pattern
    assert {name: sum(kept) for name, kept in pattern.items()} == {
        f"{name}.lora_E": next(n for key, n in left.items() if name in key) for name in ("much", "little")
    }


def test_a_rank_may_come_back_until_it_is_decided():
    model = train(adapted(deltaT=2), range(5))
    assert sum(ranks(model).values()) < 8
    assert config_of(model).rank_pattern is None
    train(model, [5])
    assert sum(ranks(model).values()) == 8
    train(model, [6])
    decided = ranks(model)
    train(model, [7, 8, 9])
    assert ranks(model) == decided


def test_files_hold_all_ranks_until_it_is_decided_and_then_those_that_are_left(tmp_path):
    model = train(adapted(), range(4))
    for name, expected in (("before", 8), ("after", 4)):
        model.save_pretrained(tmp_path / name)
        state = load_file(tmp_path / name / "adapter_model.safetensors")
        assert sum(tensor.shape[0] for key, tensor in state.items() if key.endswith("lora_E")) == expected
        for options in ({}, {"low_cpu_mem_usage": True}):
            loaded = PeftModel.from_pretrained(Net(), tmp_path / name, **options)
            torch.testing.assert_close(loaded(X).y, model(X).y)
        train(model, range(4, 9))


def test_a_loaded_adapter_keeps_its_ranks_and_trains_on(tmp_path):
    train(adapted()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net(), tmp_path, is_trainable=True)
    before, pattern = ranks(loaded), config_of(loaded).rank_pattern
    output = loaded(X).y.detach()
    train(loaded)
    assert (ranks(loaded), config_of(loaded).rank_pattern) == (before, pattern)
    assert not torch.allclose(loaded(X).y, output)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(PeftModel.from_pretrained(Net(), tmp_path / "again")(X).y, loaded(X).y)


def test_a_state_with_the_ranks_that_are_left_goes_back_into_the_trained_adapter():
    model = train(adapted())
    state = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    expected = model(X).y.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(3)
    set_peft_model_state_dict(model, state)
    torch.testing.assert_close(model(X).y, expected)


def test_a_copy_goes_its_own_way():
    model = train(adapted(), range(4))
    copied = copy.deepcopy(model)
    train(copied, range(4, 9))
    assert config_of(copied).rank_pattern is not None
    assert config_of(model).rank_pattern is None
    assert copied.base_model.tuner("default").adapters["much"] is copied.get_base_model().much.adapters["default"]


def test_several_adapters_have_budgets_of_their_own():
    model = adapted()
    model.add_adapter("second", AdaLoraConfig(**{**RANKS, "target_r": 1}, target_modules=["little"]))
    perturb(model, "second")
    model.set_adapter(["default", "second"])
    train(model)
    patterns = {name: config.rank_pattern for name, config in model.peft_config.items()}
    assert {name: sum(map(sum, pattern.values())) for name, pattern in patterns.items()} == {"default": 4, "second": 1}


def test_a_layer_that_no_loss_depends_on_loses_its_ranks_first():
    class Idle(Net):
        def forward(self, x, labels=None):
            return Output(y=self.much(x), loss=(self.much(x) - labels).square().mean())

    model = train(adapted(Idle(), orth_reg_weight=0.0))
    assert {name: sum(kept) for name, kept in config_of(model).rank_pattern.items()} == {
        "much.lora_E": 4,
        "little.lora_E": 0,
    }


def test_without_gradients_a_step_is_refused_and_nothing_has_changed():
    model = adapted()
    before = Snapshot.of(model.get_base_model())
    for step in (1, 7):
        with pytest.raises(StepError, match=r"'default' .adalora. has no gradients.*before optimizer.zero_grad"):
            model.update_and_allocate(step)
    before.assert_same(model.get_base_model(), "After a step without gradients", "")
    assert config_of(model).rank_pattern is None


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("init_r", {"init_r": 0}),
        ("init_r", {"init_r": "8"}),
        ("target_r", {"target_r": 13}),
        ("total_step", {"total_step": None}),
        ("total_step", {"total_step": 0}),
        ("total_step", {"tinit": 60, "tfinal": 40}),
        ("deltaT", {"deltaT": 0}),
        ("beta1", {"beta1": 1.0}),
        ("beta2", {"beta2": 0.0}),
        ("orth_reg_weight", {"orth_reg_weight": -0.1}),
        ("lora_dropout", {"lora_dropout": 1.0}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("lora_bias", {"lora_bias": True}),
        ("rank_pattern", {"rank_pattern": {"q_proj": 4}}),
        ("alpha_pattern", {"alpha_pattern": {"q_proj": "4"}}),
        ("bias", {"bias": "hira_only"}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, options):
    with pytest.raises(ConfigError, match=f"AdaLoraConfig.{field}"):
        AdaLoraConfig(**{"total_step": 100, **options})


def test_whoever_sets_r_is_told_that_it_is_ignored():
    with pytest.warns(UserWarning, match="init_r"):
        AdaLoraConfig(r=16, total_step=10)


@pytest.mark.parametrize(
    ("layer", "options", "field"),
    [
        (nn.Linear(6, 3), {"init_r": 7}, "init_r"),
        (nn.Conv2d(2, 4, 3, groups=2), {"init_r": 10}, "init_r"),
        (nn.MultiheadAttention(8, 2), {"lora_dropout": 0.1}, "lora_dropout"),
    ],
)
def test_what_does_not_go_with_a_layer_is_refused_and_nothing_has_changed(layer, options, field):
    model = nn.Sequential(layer)
    before = Snapshot.of(model)
    with pytest.raises(ConfigError, match=rf"AdaLoraConfig.{field}: .*{type(layer).__name__}"):
        get_peft_model(model, AdaLoraConfig(**{**RANKS, "target_modules": ["0"], **options}))
    before.assert_same(model, "After a config was refused", "")
