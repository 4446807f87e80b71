"""Checks of the forward pass: inputs of all shapes, dtypes, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftcore import get_peft_model_state_dict, set_peft_model_state_dict
from peftcore.testing.basis import MethodTests
from peftcore.testing.closeness import BFLOAT16, EXACT, assert_close
from peftcore.testing.trials import Case, Trial, seeded, trainable


class ForwardTests(MethodTests):
    """An adapted layer takes whatever the frozen layer takes."""

    def test_forward_leaves_inputs_and_weights_alone(self, case: Case) -> None:
        """No adapter changes what the layer was given, or the layer's weight."""
        trial = Trial(case)
        trial.add("second")
        self.together(trial, "default", "second")
        given: list[tuple[Tensor, Tensor]] = []
        for path, module in trial.user_model.named_modules():
            if path.startswith("layers.") and path.endswith(".target"):
                module.register_forward_pre_hook(lambda _, args: given.extend((x, x.clone()) for x in args))
        trial.output()
        cause = "Does delta_forward (or forward) change its input in place?"
        for x, before in given:
            assert_close(x, before, "After the forward pass, a layer's input differs from before", cause, EXACT)
        trial.before.assert_tensors_same("After a forward pass", "Does the adapter write to the layer's weight?")

    def test_rows_do_not_depend_on_each_other(self, case: Case) -> None:
        """A batch of one gives what the row gives in a larger batch."""
        trial = Trial(case)
        whole = trial.output()
        for row in range(len(trial.x)):
            assert_close(
                trial.output(x=trial.x[row : row + 1]),
                whole[row : row + 1],
                f"Alone, row {row} differs from the same row in a batch",
                "Does the adapter's effect depend on the other rows, or does it reshape by the batch's size?",
            )

    def test_empty_batch(self, case: Case) -> None:
        """A batch without rows gives an output without rows."""
        trial = Trial(case)
        empty = trial.batch(0)
        with torch.no_grad():
            expected = case.sample.model()(empty)
        assert_close(
            trial.output(x=empty),
            expected,
            "For a batch without rows, the output differs",
            "Does the adapter reshape with -1, which is ambiguous for no rows?",
        )

    @pytest.mark.parametrize("autocast", [True, False])
    def test_bfloat16_model(self, case: Case, autocast: bool) -> None:
        """On a bfloat16 model, the adapter is kept in float32 or in bfloat16 as asked; the output stays bfloat16."""
        trial = Trial(case.gently(), dtype=torch.bfloat16, autocast_adapter_dtype=autocast)
        exact = Trial(case.gently(), rounded_to=torch.bfloat16)
        wanted = torch.float32 if autocast else torch.bfloat16
        other = [name for name, parameter in trainable(trial.model).items() if parameter.dtype != wanted]
        assert not other, f"With autocast_adapter_dtype={autocast}, these are not {wanted}: {', '.join(other)}."
        set_peft_model_state_dict(exact.model, get_peft_model_state_dict(trial.model))
        assert_close(
            trial.output(),
            exact.output().bfloat16(),
            f"With autocast_adapter_dtype={autocast}, the bfloat16 model differs from a float32 one like it",
            "Does the adapter compute in a dtype of its own, or lose precision on the way?",
            BFLOAT16,
        )

    @pytest.mark.slow
    def test_compiled_model_equals_eager(self, first_case: Case) -> None:
        """``torch.compile(fullgraph=True)`` takes the adapted model in one graph; the output is the same."""
        trial = Trial(first_case)
        expected = trial.output()
        torch._dynamo.reset()
        compiled = torch.compile(trial.model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            actual = compiled(trial.x)
        cause = "Does forward decide by the values of tensors?"
        assert_close(actual, expected, "The compiled model's output differs", cause)

    def test_disabled_adapter_does_nothing(self, case: Case) -> None:
        """Inside ``disable_adapter()`` the output is the frozen model's own, and afterwards the adapter acts again."""
        trial = Trial(case)
        active = trial.output()
        with trial.model.disable_adapter():
            disabled = trial.output()
        cause = "Does the adapter act elsewhere than in forward, by a hook or by the layer's own weight?"
        assert_close(disabled, trial.frozen, "Disabled, the output differs from the frozen model's", cause)
        assert_close(trial.output(), active, "After disable_adapter(), the output differs from before", cause, EXACT)

    def test_output_does_not_depend_on_the_generator(self, case: Case) -> None:
        """Two adapters of one config and one state act alike, wherever their starts were drawn from."""
        one, two = Trial(case, seed=1), Trial(case, seed=5)
        set_peft_model_state_dict(two.model, get_peft_model_state_dict(one.model))
        with seeded(6):
            output = two.output()
        assert_close(
            output,
            one.output(),
            "Two adapters that hold the same saved tensors differ",
            "Does it hold something random that is not saved? Save it as a buffer, or derive it from the config.",
        )
