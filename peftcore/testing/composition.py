"""Checks of several adapters in one model: together, one after the other, and each on rows of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from peftcore import get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.call_state import BASE
from peftcore.testing.basis import MethodTests
from peftcore.testing.closeness import EXACT, assert_close, refused
from peftcore.testing.snapshot import Snapshot
from peftcore.testing.trials import Case, Trial, trainable


def pair(case: Case) -> Trial:
    """Make a model with adapters ``one`` and ``two`` of the case's two configs."""
    trial = Trial(case, "one")
    trial.add("two")
    return trial


class CompositionTests(MethodTests):
    """Adapters of one method do not know of each other, and act together in the order in which they are active."""

    def test_second_adapter_is_what_it_is_alone(self, case: Case) -> None:
        """The second adapter in a model follows its own config, as it does in a model of its own."""
        together, alone = pair(case), Trial(case.flipped(), "two")
        state = get_peft_model_state_dict(together.model, adapter_name="two")
        fits = set_peft_model_state_dict(alone.model, state, "two", strict=False)
        cause = "Is something of the first adapter's kept for the layer or the class, and used by the second?"
        assert fits.complete, f"Beside another adapter, the second one has other tensors than alone: {fits} {cause}"
        assert_close(
            together.output("two"),
            alone.output("two"),
            "Beside another adapter, the second one's output differs from what it gives alone",
            cause,
        )

    def test_adapters_share_nothing_that_trains(self, case: Case) -> None:
        """Two adapters have no parameter in common."""
        trial = pair(case)
        stored: dict[str, dict[int, str]] = {}
        for name in ("one", "two"):
            trial.model.set_adapter(name)
            stored[name] = {p.untyped_storage().data_ptr(): path for path, p in trainable(trial.model).items()}
        shared = [path for where, path in stored["one"].items() if where in stored["two"]]
        assert not shared, (
            f"Both adapters train the same tensor: {', '.join(shared)}. "
            "Is it kept by the class, by the layer or by a cache?"
        )

    def test_training_one_adapter_leaves_the_other(self, case: Case) -> None:
        """Whatever happens to one adapter, the other gives what it gave."""
        trial = pair(case)
        expected = trial.output("one")
        trial.perturb("two", seed=7)
        cause = "Do they share state?"
        assert_close(trial.output("one"), expected, "After a change of adapter two, adapter one differs", cause, EXACT)

    def test_switching_follows_the_name(self, case: Case) -> None:
        """Only the adapter that is active acts and trains."""
        trial = pair(case)
        expected = {name: trial.output(name) for name in ("one", "two")}
        cause = "Does an adapter remember what was active?"
        for name in ("one", "two", "one"):
            assert_close(
                trial.output(name), expected[name], f"Switched back to {name}, the output differs", cause, EXACT
            )
        trial.model.set_adapter([])
        assert_close(
            trial.output(), trial.frozen, "With none active, the output differs from the frozen model's", cause
        )

    @pytest.mark.parametrize("order", [("one", "two"), ("two", "one")], ids="-".join)
    def test_two_merged_adapters_equal_forward(self, case: Case, order: tuple[str, str]) -> None:
        """Two active adapters, merged together, do what they did in the forward pass; in both orders."""
        trial = pair(case)
        if not self.together(trial, *order):
            return
        expected = trial.output()
        if not self.merged(trial):
            return
        cause = (
            "Does delta_forward change its input? "
            "Does fold (transform) start from the weight that it is given, in the order in which forward acts?"
        )
        assert_close(trial.output(), expected, "With two active adapters, merged differs from forward", cause)
        trial.model.unmerge_adapter()
        assert_close(trial.output(), expected, "With two active adapters, unmerged differs from before", cause)

    def test_merging_in_increments_equals_forward(self, case: Case) -> None:
        """Two active adapters, merged one after the other, give the same at every stage."""
        trial = pair(case)
        if not self.together(trial, "one", "two"):
            return
        expected = trial.output()
        cause = "Is the adapter's effect computed from the weight as it is now, where the frozen one is meant?"
        if not self.merged(trial, "one"):
            return
        assert_close(trial.output(), expected, "With the first of two adapters merged, the output differs", cause)
        self.merged(trial, "two")
        assert_close(trial.output(), expected, "With both adapters merged one by one, the output differs", cause)
        trial.model.unmerge_adapter()
        assert_close(trial.output(), expected, "After unmerging both, the output differs", cause)

    def test_mixed_batch_equals_row_by_row(self, case: Case) -> None:
        """With ``adapter_names``, each row gets what its adapter gives it alone."""
        trial = pair(case)
        trial.add("third", case.options, seed=8)
        alone = {name: trial.output(name) for name in ("one", "two", "third")} | {BASE: trial.frozen}
        for names in (["one", "two", BASE, "one"], ["third", "third", "two", "one"], [BASE] * 4):
            expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
            mixed = trial.output(adapter_names=names)
            cause = "Does the adapter's effect depend on the other rows, or on how many there are?"
            assert_close(mixed, expected, f"The mixed batch {names} differs from its rows alone", cause)
        cause = "Does the adapter keep something of the call?"
        assert_close(trial.output(), alone["third"], "After mixed batches, the active adapter differs", cause, EXACT)

    def test_error_in_a_mixed_batch_leaves_nothing_behind(self, case: Case) -> None:
        """After a call that failed half-way, hooks and outputs are as before."""
        trial = pair(case)
        expected = trial.output("one")
        before = Snapshot.of(trial.user_model)
        with (
            _failing(trial.user_model.get_submodule("head")),
            refused("A forward pass in which a module fails", _HalfWay),
        ):
            trial.output(adapter_names=["one", "two", BASE, "one"])
        cause = "Does the adapter set something for the time of a call, without try/finally?"
        before.assert_same(trial.user_model, "After a mixed batch that failed", cause)
        assert_close(trial.output(), expected, "After a mixed batch that failed, the output differs", cause, EXACT)


class _HalfWay(Exception):
    """Raised in the middle of a forward pass."""


@contextmanager
def _failing(module: nn.Module) -> Iterator[None]:
    """Let a module raise for the time of a block."""

    def fail(*_: object) -> None:
        raise _HalfWay

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
