"""The parity suite bites: a method that differs from HF PEFT's in one way is caught by the checks meant for that.

The method is the simplest that HF PEFT has: BEFT, a shift of the output.
``caught_by`` are the checks that must fail, all others must pass; ``said`` stands in a message of one of them.
"""

import dataclasses
import inspect

import pytest
import torch
from torch import nn

from peftcore import register_peft_method, unregister_peft_method
from peftcore.adapters.scale import OutputScale
from peftcore.registry import registry
from peftcore.testing import ParityCase, ParityTests
from peftcore.testing.models import mlp

HERE = "test_what_is_written_here_acts_the_same_there"
THERE = "test_what_is_written_there_acts_the_same_here"
AS_IT_IS = "test_what_is_written_there_is_taken_as_it_is"
STATE = "test_a_state_of_theirs_goes_into_an_adapter_of_ours"
START = "test_both_start_from_one_distribution"
OUTPUTS = {HERE, THERE, AS_IT_IS, STATE}


class Suite(ParityTests):
    method = "beft"
    cases = {"mlp": ParityCase(mlp, torch.linspace(-2, 2, 32).reshape(4, 8), {"target_modules": ["0", "4"]})}
    starts = {
        "random": ParityCase(
            lambda: nn.Sequential(nn.Linear(2, 3000)), options={"target_modules": ["0"], "init_weights": False}
        )
    }


class Right(OutputScale):
    """BEFT without a mistake; the others derive from it."""

    caught_by: set[str] = set()
    said = ""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        shape = (1, base.out_features)
        self.beft_bias = nn.Parameter(torch.zeros(shape) if config.init_weights else torch.randn(shape))

    def shift(self):
        return self.beft_bias.flatten()


class ScalesByOnePercentMore(Right):
    """The shift is 1 % too large."""

    caught_by = OUTPUTS
    said = "Loaded by the other library, the output differs"

    def shift(self):
        return super().shift() * 1.01


class FoldsByOnePercentMore(Right):
    """Merged, the shift is 1 % too large."""

    caught_by = {HERE, THERE}
    said = "Merged by peftcore."

    def fold(self, weight, bias):
        return weight, bias + self.shift() * 1.01


class HasAnotherName(Right):
    """The parameter is called otherwise."""

    caught_by = OUTPUTS | {START}
    said = "Found missing adapter keys"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.beft_shift = self.beft_bias
        del self.beft_bias

    def shift(self):
        return self.beft_shift.flatten()


class HasAnotherShape(Right):
    """The parameter lacks a dimension."""

    caught_by = OUTPUTS | {START}
    said = "The new adapters' tensors differ"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.beft_bias = nn.Parameter(self.beft_bias.detach().flatten())


class StartsElsewhere(Right):
    """Random starts are uniform instead of normal."""

    caught_by = {START}
    said = "beft_bias starts from another distribution than in HF PEFT"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        if not config.init_weights:
            nn.init.uniform_(self.beft_bias, -1, 1)


class StartsAtHalf(Right):
    """Random starts have half the spread."""

    caught_by = {START}
    said = "beft_bias starts from another distribution than in HF PEFT"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.beft_bias.data.mul_(0.5)


class RoundsWhatItSaves(Right):
    """Whoever saves it, or asks for its state, takes digits away."""

    caught_by = {THERE}
    said = "What HF PEFT wrote changes when it is saved here: base_model.model.0.beft_bias"

    def saved_module(self):
        self.beft_bias.data = self.beft_bias.data.bfloat16().float()
        return self


class RemembersItsFirstTensor(Right):
    """It goes on with the tensor that it was made with, although a file's has taken its place."""

    caught_by = {AS_IT_IS}

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.memory = [self.beft_bias]

    def shift(self):
        return self.memory[0].flatten()


class AddsWhatItReads(Right):
    """A state is added to what is there, which is right for a new adapter only."""

    caught_by = {STATE}
    said = "Loaded by the other library, the output differs"
    before = 0.0

    def before_load(self, state):
        if not self.beft_bias.is_meta:
            self.before = self.beft_bias.detach().flatten().clone()

    def shift(self):
        return super().shift() + self.before


class Metafunc:
    """Takes from a suite what pytest would: the values of one check's argument."""

    def __init__(self, check):
        self.fixturenames, self.arguments = tuple(inspect.signature(check).parameters), []

    def parametrize(self, argument, values, ids):
        assert len(ids) == len(values)
        self.arguments += [{argument: value} for value in values]


def failures_of(suite, directory):
    """Return the messages of the checks that fail, by check."""
    failures = {}
    for name, check in inspect.getmembers(suite, inspect.isfunction):
        if name.startswith("test_"):
            metafunc = Metafunc(check)
            suite().pytest_generate_tests(metafunc)
            assert metafunc.arguments
            for arguments in metafunc.arguments:
                directories = {"tmp_path": directory / name} if "tmp_path" in metafunc.fixturenames else {}
                try:
                    check(suite(), **arguments, **directories)
                except Exception as error:
                    failures[name] = f"{type(error).__name__}: {error}"
    return failures


@pytest.fixture(autouse=True)
def right():
    """The method is in the hands of this file; afterwards it is the installed one again."""
    method = dataclasses.replace(registry["beft"], adapter_cls=Right)
    register_peft_method(method, replace=True)
    yield method
    unregister_peft_method("beft")


def test_what_is_right_passes(tmp_path):
    assert failures_of(Suite, tmp_path) == {}


@pytest.mark.parametrize("adapter_cls", Right.__subclasses__(), ids=lambda cls: cls.__name__)
def test_what_is_wrong_is_caught_by_the_checks_that_are_meant_for_it(adapter_cls, right, tmp_path):
    register_peft_method(dataclasses.replace(right, adapter_cls=adapter_cls), replace=True)
    failures = failures_of(Suite, tmp_path)
    assert failures.keys() == adapter_cls.caught_by
    assert adapter_cls.said in "\n".join(failures.values())


def test_an_adapter_that_does_nothing_proves_nothing(tmp_path):
    class Idle(Suite):
        perturbation = 0.0

    failures = failures_of(Idle, tmp_path)
    assert failures.keys() == OUTPUTS
    assert all("The adapter does nothing" in message for message in failures.values())


def test_a_check_replaced_without_a_reason_is_refused():
    with pytest.raises(TypeError, match=f"{HERE} replaces a check"):
        type("Lax", (ParityTests,), {HERE: lambda self, libraries: None})
