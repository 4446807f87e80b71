"""What a method adds to the loss, and what it does after a step."""

import pytest
import torch
from torch import nn

from peftcore import LayerConfig, get_peft_model, register_peft_method, unregister_peft_method
from peftcore.tuner import LayerTuner

from .methods import PlainAdapter, PlainConfig


class SteppedConfig(LayerConfig, method="stepped"):
    r: int = 2
    strength: float = 1.0


class SteppedAdapter(PlainAdapter):
    """A plain delta, its parameters under the method's own prefix."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.stepped_A, self.stepped_B = self.plain_A, self.plain_B
        del self.plain_A, self.plain_B

    def delta_weight(self):
        return self.stepped_B @ self.stepped_A


class SteppedTuner(LayerTuner):
    """Adds the squares of its parameters to the loss, and remembers the steps that it was told of."""

    def extra_loss(self):
        return sum(parameter.square().sum() for parameter in self.parameters())

    def after_step(self, global_step):
        self.steps = [*getattr(self, "steps", []), global_step]


class Output(dict):
    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]

    __setattr__ = dict.__setitem__


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        y = self.lin(x)
        return Output(logits=y) if labels is None else Output(logits=y, loss=(y - labels).square().mean())


@pytest.fixture
def model():
    register_peft_method(name="stepped", config_cls=SteppedConfig, adapter_cls=SteppedAdapter, tuner_cls=SteppedTuner)
    try:
        yield get_peft_model(WithLoss(), SteppedConfig(target_modules=["lin"]))
    finally:
        unregister_peft_method("stepped")


def penalty(model, name="default"):
    return sum(p.square().sum() for p in model.base_model.tuner(name).parameters())


def test_what_the_active_method_adds_is_in_the_loss(model):
    x, labels = torch.randn(2, 4), torch.randn(2, 3)
    output = model(x, labels)
    task = (output.logits - labels).square().mean()
    torch.testing.assert_close(output.loss, task + penalty(model))
    output.loss.backward()
    assert all(p.grad is not None for p in model.base_model.tuner("default").parameters())
    assert "loss" not in model(x)


def test_nothing_is_added_while_it_does_not_act(model):
    x, labels = torch.randn(2, 4), torch.randn(2, 3)
    with model.disable_adapter():
        output = model(x, labels)
    torch.testing.assert_close(output.loss, (output.logits - labels).square().mean())
    model.add_adapter("other", PlainConfig(target_modules=["lin"]))
    model.set_adapter("other")
    output = model(x, labels)
    torch.testing.assert_close(output.loss, (output.logits - labels).square().mean())


def test_the_active_methods_are_told_of_steps(model):
    model.update_and_allocate(1)
    model.add_adapter("other", PlainConfig(target_modules=["lin"]))
    model.update_and_allocate(2)
    model.set_adapter("other")
    model.update_and_allocate(3)
    assert model.base_model.tuner("default").steps == [1, 2]
    model.delete_adapter("default")
    model.update_and_allocate(4)
