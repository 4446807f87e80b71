"""Checks of merging one adapter; a method that can't be merged must say so in the same words everywhere."""

from __future__ import annotations

import torch

from peftcore.exceptions import MergeError, NotMergeableError
from peftcore.testing.basis import MethodTests
from peftcore.testing.closeness import BFLOAT16, EXACT, FLOAT32, assert_close, refused
from peftcore.testing.trials import Case, Trial, trainable


class MergingTests(MethodTests):
    """The weight that acts is one and the same, in the forward pass and merged."""

    def test_what_cannot_be_merged_says_why(self) -> None:
        """``mergeable`` is False only together with a reason."""
        adapter_cls = self.adapter_cls()
        assert adapter_cls.mergeable is True or adapter_cls.unmergeable_because, (
            f"{adapter_cls.__name__} is not mergeable; say why in `unmergeable_because`."
        )

    def test_merged_equals_forward(self, case: Case) -> None:
        """Merged into the float32 weights, an adapter does what it did in the forward pass."""
        trial = Trial(case)
        expected = trial.output()
        if self.merged(trial):
            assert_close(
                trial.output(),
                expected,
                "The merged model's output differs from the forward pass's",
                "Is delta_weight (fold) what delta_forward (forward) applies: the same sign, scaling and orientation?",
            )

    def test_merged_equals_forward_in_bfloat16(self, case: Case) -> None:
        """The same in bfloat16, where rounding allows."""
        trial = Trial(case.gently(), dtype=torch.bfloat16)
        expected = trial.output()
        if self.merged(trial):
            cause = "Is a small change added to the coarse weight in several steps, or computed in bfloat16?"
            assert_close(trial.output(), expected, "The merged model's output differs", cause, BFLOAT16)

    def test_unmerge_restores(self, case: Case) -> None:
        """Merging twice is merging once; unmerged, weights and output are as before."""
        trial = Trial(case)
        expected = trial.output()
        if not self.merged(trial):
            return
        self.merged(trial)
        trial.model.unmerge_adapter()
        cause = "Is delta_weight the same whenever it is asked, also while it is merged?"
        trial.before.assert_tensors_same("After merging and unmerging", cause, FLOAT32)
        assert_close(trial.output(), expected, "After merging and unmerging, the output differs", cause)

    def test_disabled_while_merged(self, case: Case) -> None:
        """Disabling takes a merged adapter out of the weights, and puts it back."""
        trial = Trial(case)
        expected = trial.output()
        if not self.merged(trial):
            return
        with trial.model.disable_adapter():
            disabled = trial.output()
        cause = "Is delta_weight the same whenever it is asked?"
        assert_close(disabled, trial.frozen, "Merged and disabled, the output differs from the frozen model's", cause)
        assert_close(trial.output(), expected, "Merged, after disable_adapter(), the output differs", cause)

    def test_merge_and_unload(self, case: Case) -> None:
        """What is left is the user's model, with its own modules and new weights."""
        trial = Trial(case)
        expected = trial.output()
        if not self.merged(trial):
            with refused("merge_and_unload() of what can't be merged", NotMergeableError):
                trial.model.merge_and_unload()
            cause = "Is something taken out before every part was asked whether it can be merged?"
            assert_close(
                trial.output(), expected, "After a refused merge_and_unload(), the output differs", cause, EXACT
            )
            return
        merged = trial.model.merge_and_unload()
        with torch.no_grad():
            cause = "Does the merged weight need something that goes with the adapter?"
            assert_close(merged(trial.x), expected, "After merge_and_unload(), the output differs", cause)
        modules = {path: type(module).__name__ for path, module in merged.named_modules()}
        before = {path: type(module).__name__ for path, module in trial.before.modules.items()}
        assert modules == before, "After merge_and_unload(), the model's modules are not those that it had."

    def test_deleting_a_merged_adapter_unmerges_it(self, case: Case) -> None:
        """Deleted while it is merged, an adapter is gone from the weights too."""
        trial = Trial(case)
        if not self.merged(trial):
            return
        trial.model.delete_adapter("default")
        cause = "Is delta_weight the same whenever it is asked?"
        trial.before.assert_tensors_same("After deleting a merged adapter", cause, FLOAT32)
        assert_close(trial.output(), trial.frozen, "After deleting a merged adapter, the output differs", cause)

    def test_safe_merge_refuses_what_is_not_finite(self, case: Case) -> None:
        """``safe_merge=True`` leaves everything as it was when the merged weight would hold NaN."""
        trial = Trial(case)
        with torch.no_grad():
            for parameter in trainable(trial.model).values():
                parameter.fill_(float("nan"))
        with refused("safe_merge of a weight that is not finite", MergeError, NotMergeableError):
            trial.model.merge_adapter(safe_merge=True)
        trial.before.assert_tensors_same("After a refused safe_merge", "Is the weight written before it is checked?")
        merged = trial.model.get_model_status().merged_adapters
        assert merged == [], f"After a refused safe_merge, {merged} counts as merged."
