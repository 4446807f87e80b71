"""A frozen linear layer and deltas that are whole matrices, in one product."""

import pytest
import torch
from torch import nn

from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.factored import FactoredConfig, FactoredDelta
from peftcore.adapters.formed_deltas import run_with_formed_deltas
from peftcore.base_layers import adapt
from peftcore.config import LayerConfig


class Whole(WeightDelta):
    kinds = frozenset({"linear", "conv1d"})

    def __init__(self, base, config=None, shared=None):
        super().__init__(base, config or LayerConfig(), shared)
        self.whole = nn.Parameter(torch.randn(base.weight_shape))

    def delta_weight(self):
        return self.whole * 0.5


class ByInput(Whole):
    def delta_forward(self, x):
        return super().delta_forward(x)


class Entered(Whole):
    def entering(self, x):
        return x * 2


class Biased(Whole):
    def delta_bias(self):
        return self.whole.sum(1)


class Factored(FactoredDelta):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.one, self.other, _ = self.split(*self.sizes)

    def delta_weight(self):
        return self.one @ self.other


def linear(**options):
    return adapt(nn.Linear(6, 4, **options).requires_grad_(False))


def step_by_step(base, deltas, x):
    return base.forward(x) + sum(delta.delta_forward(x) for delta in deltas)


@pytest.mark.parametrize("shape", [(16, 6), (3, 9, 6), (2, 2, 4, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1, 2])
def test_it_says_what_the_steps_say(shape, bias, dtype, number):
    base = linear(bias=bias, dtype=dtype)
    deltas = [Whole(base).to(dtype) for _ in range(number)]
    results = []
    for run in (run_with_formed_deltas, step_by_step):
        x = torch.linspace(-2, 2, torch.Size(shape).numel(), dtype=dtype).reshape(shape).requires_grad_()
        output = run(base, deltas, x)
        gradients = torch.autograd.grad(output.sin().sum(), [x, *(delta.whole for delta in deltas)])
        results.append((output, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_factors_are_dropped_in_training_alone(training):
    base = linear()
    for options, drops in (({}, False), ({"rank_dropout": 0.5}, True), ({"module_dropout": 0.5}, True)):
        delta = Factored(base, FactoredConfig(r=2, **options)).train(training)
        assert (run_with_formed_deltas(base, [delta], torch.ones(20, 6)) is None) == (drops and training)


@pytest.mark.parametrize("bias", [True, False])
def test_changes_of_the_bias_act_too(bias):
    base, x = linear(bias=bias), torch.randn(20, 6)
    deltas = [Biased(base), Whole(base), Biased(base)]
    torch.testing.assert_close(run_with_formed_deltas(base, deltas, x), step_by_step(base, deltas, x))


@pytest.mark.parametrize("own", [ByInput, Entered])
def test_a_delta_that_acts_in_its_own_way_does_so(own):
    base = linear()
    assert run_with_formed_deltas(base, [own(base)], torch.ones(20, 6)) is None
    assert run_with_formed_deltas(base, [Whole(base), own(base)], torch.ones(20, 6)) is None


def test_no_precision_is_lost():
    x = torch.ones(20, 6)
    halves, mixed, plain = linear(dtype=torch.bfloat16), linear(dtype=torch.bfloat16), linear()
    assert run_with_formed_deltas(halves, [Whole(halves).bfloat16()], x.bfloat16()) is None
    assert run_with_formed_deltas(mixed, [Whole(mixed)], x.bfloat16()) is None
    assert run_with_formed_deltas(plain, [Whole(plain).double()], x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert run_with_formed_deltas(plain, [Whole(plain)], x) is None


def test_few_rows_and_other_layers_take_the_steps():
    base, conv = linear(), adapt(nn.Conv1d(6, 4, 1).requires_grad_(False))
    assert run_with_formed_deltas(base, [Whole(base)], torch.ones(15, 6)) is None
    assert run_with_formed_deltas(conv, [Whole(conv)], torch.ones(9, 6, 20)) is None


def test_a_hook_on_the_frozen_layer_is_called():
    base = linear()
    base.layer.register_forward_hook(lambda *_: None)
    assert run_with_formed_deltas(base, [Whole(base)], torch.ones(20, 6)) is None
