"""Checks of coming and going: what leaves a trace, what is left half-done, what is shared by copies."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import TargetError
from peftcore.testing.basis import MethodTests
from peftcore.testing.closeness import EXACT, assert_close, refused
from peftcore.testing.samples import UNKNOWN, Sample
from peftcore.testing.snapshot import Snapshot
from peftcore.testing.trials import Case, Trial, perturb, seeded

_TRACE = "Does the adapter leave something on the layer (an attribute, a hook, a flag), outside of its own module?"


class LifecycleTests(MethodTests):
    """A model with no adapters left is the model that it was."""

    def test_delete_leaves_no_trace(self, case: Case) -> None:
        """After the last adapter is deleted: same modules, tensors, flags, hooks, attributes, state dict."""
        trial = Trial(case, "one")
        trial.add("two")
        self.together(trial, "one", "two")
        trial.output()
        expected = trial.output("two")
        trial.model.delete_adapter("one")
        assert_close(trial.output("two"), expected, "After deleting adapter one, adapter two differs", _TRACE, EXACT)
        trial.model.delete_adapter("two")
        trial.before.assert_same(trial.user_model, "After deleting all adapters", _TRACE)
        assert_close(trial.output(), trial.frozen, "After deleting all adapters, the output differs", _TRACE, EXACT)

    def test_unload_leaves_no_trace(self, case: Case) -> None:
        """``unload()`` gives the user's model back."""
        trial = Trial(case)
        trial.output()
        user_model = trial.model.unload()
        trial.before.assert_same(user_model, "After unload()", _TRACE)

    def test_training_leaves_no_trace(self, first_case: Case) -> None:
        """The same after training: neither gradients nor flags are left on the frozen model."""
        trial = Trial(first_case)
        trial.model(trial.x).sum().backward()
        user_model = trial.model.unload()
        trial.before.assert_same(user_model, "After training and unload()", _TRACE)
        graded = [name for name, parameter in user_model.named_parameters() if parameter.grad is not None]
        assert not graded, f"After training, parameters of the frozen model have gradients: {', '.join(graded)}."

    def test_copy_is_independent(self, case: Case) -> None:
        """A deep copy gives the same output, and goes its own way from then on."""
        trial = Trial(case)
        expected = trial.output()
        copied = copy.deepcopy(trial.model)
        with torch.no_grad():
            assert_close(
                copied(trial.x), expected, "The copy's output differs", "Is state kept outside of the modules?"
            )
        perturb(copied, scale=case.scale, seed=10)
        cause = "Do copies share state, by an object that deepcopy passes over?"
        assert_close(trial.output(), expected, "After a change of the copy, the original differs", cause, EXACT)
        with torch.no_grad():
            changed = copied(trial.x)
        assert not torch.equal(changed, expected), f"A change of the copy's parameters does not show. {cause}"
        copied.delete_adapter("default")
        assert_close(trial.output(), expected, "After the copy's adapter is gone, the original differs", cause, EXACT)

    def test_unsupported_layers_are_refused(self) -> None:
        """A layer of a kind that the method does not know is refused by an error, and nothing has changed."""
        for sample in _of_other_kinds(self.adapter_cls().kinds, [UNKNOWN, *self.samples]):
            model = sample.model()
            before = Snapshot.of(model)
            config = Case(self.method, sample, self.configs[0], self.configs[0]).config()
            with refused(f"A layer of the kind {sample.kind!r}, which is not among the adapter's kinds,", TargetError):
                get_peft_model(model, config)
            before.assert_same(model, f"After a {sample.kind} layer was refused", _TRACE)

    def test_refused_configs_change_nothing(self) -> None:
        """A config that does not go with a layer leaves the model as it was."""
        for case, error in self.refusals():
            model = case.sample.model()
            before = Snapshot.of(model)
            with refused(f"{case}, which was refused before,", type(error)):
                get_peft_model(model, case.config())
            before.assert_same(model, f"After {case} was refused", _TRACE)

    def test_failure_half_way_changes_nothing(self, first_case: Case) -> None:
        """If the adapter of the second layer can't be made, neither a bare nor an adapted model has changed."""
        model = first_case.sample.model()
        before = Snapshot.of(model)
        with _failing_at_the_second(self.adapter_cls()), refused("A layer whose adapter can't be made", _HalfWay):
            get_peft_model(model, first_case.config())
        before.assert_same(model, "After an adapter's constructor failed", _TRACE)

        trial = Trial(first_case, "one")
        expected = trial.output()
        before = Snapshot.of(trial.user_model)
        with _failing_at_the_second(self.adapter_cls()), refused("A layer whose adapter can't be made", _HalfWay):
            trial.add("two", first_case.options)
        before.assert_same(trial.user_model, "After a second adapter's constructor failed", _TRACE)
        assert_close(trial.output(), expected, "After a second adapter's constructor failed, the first differs", _TRACE)

    def test_making_an_adapter_does_not_touch_the_model(self, case: Case) -> None:
        """The adapter's constructor only reads the layer, whatever the configs."""
        model = case.sample.model()
        before = Snapshot.of(model)
        with seeded(11):
            get_peft_model(model, case.config())
        before.assert_tensors_same("After an adapter was put in", "Does the constructor write to the layer's weight?")


class _HalfWay(Exception):
    """Raised when an adapter is made."""


def _failing_at_the_second(adapter_cls: type[nn.Module]) -> Any:
    """Let the second adapter module that is made raise, for the time of a block."""
    made: list[nn.Module] = []
    original = adapter_cls.__init__

    def fail_at_the_second(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        if len(made) > 1:
            raise _HalfWay
        original(self, *args, **kwargs)

    return mock.patch.object(adapter_cls, "__init__", fail_at_the_second)


def _of_other_kinds(kinds: frozenset[str], samples: Sequence[Sample]) -> list[Sample]:
    """Return one sample of each kind that is not among these; a method for any module lacks bare parameters only."""
    others: dict[str, Sample] = {}
    for sample in samples:
        taken = "target_parameters" not in sample.targets if "module" in kinds else sample.kind in kinds
        if not taken and sample.plain:
            others.setdefault(sample.kind, sample)
    return list(others.values())
