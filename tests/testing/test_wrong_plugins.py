"""The kit bites: each adapter here is wrong in one way, and the checks that are meant for it say so.

``caught_by`` are the checks that must fail, and ``said`` stands in a message of one of them.
``besides`` are the checks that the same mistake has to reach by its nature; whatever is in neither set must pass.
"""

from typing import ClassVar
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.config import LayerConfig, input_dropout_option, option
from peftcore.testing import SAMPLES, LayerMethodTests


class WrongConfig(LayerConfig, method="wrong"):
    r: int = option(2, "Rank.", at_least=1)
    scale: float = option(1.0, "Factor of the change.")


class Suite(LayerMethodTests):
    configs = ({"r": 2}, {"r": 3, "scale": 0.5})
    samples = SAMPLES[:1]


#: Whoever acts differently when it is merged fails these too.
MERGED = {
    "test_disabled_while_merged",
    "test_merge_and_unload",
    "test_merged_equals_forward",
    "test_merged_equals_forward_in_bfloat16",
    "test_merging_in_increments_equals_forward",
    "test_two_merged_adapters_equal_forward",
}
#: Whoever leaves something on a layer fails these.
TRACES = {
    "test_delete_leaves_no_trace",
    "test_failure_half_way_changes_nothing",
    "test_training_leaves_no_trace",
    "test_unload_leaves_no_trace",
}
#: Whoever does not come back from a file as it was fails these.
FILES = {
    "test_adapters_may_be_called_like_modules",
    "test_save_and_load",
    "test_load_into_a_meta_adapter",
    "test_meta_adapter_takes_a_state",
    "test_state_survives_torch_save",
}
#: Every check: for mistakes that no comparison of two outputs can overlook.
ALL = {name for name in dir(LayerMethodTests) if name.startswith("test_")}


class Right(WeightDelta):
    """W + scale · B · A, without a mistake; most of the others derive from it."""

    caught_by: ClassVar[set[str]] = set()
    besides: ClassVar[set[str]] = set()
    said = ""
    config_cls = WrongConfig

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        out, into = base.matrix_shape
        self.scale = config.scale
        self.wrong_a = nn.Parameter(torch.randn(config.r, into) / 3)
        self.wrong_b = nn.Parameter(torch.zeros(out, config.r))

    def delta_weight(self):
        return self.wrong_b @ self.wrong_a * self.scale

    def delta_forward(self, x):
        return x @ self.wrong_a.T @ self.wrong_b.T * self.scale


# ------------------------------------------------------------------------------------------------- state


class SharesParameters(Right):
    """All adapters on one layer train one vector."""

    caught_by: ClassVar = {"test_adapters_share_nothing_that_trains"}
    besides: ClassVar = {"test_training_one_adapter_leaves_the_other"}
    said = "Both adapters train the same tensor"
    vectors: ClassVar = WeakKeyDictionary()

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.wrong_b = self.vectors.setdefault(base.layer, nn.Parameter(torch.zeros(base.out_features)))

    def delta_weight(self):
        return torch.outer(self.wrong_b, self.wrong_a.sum(0)) * self.scale

    delta_forward = WeightDelta.delta_forward


class KeepsStateOnTheLayer(Right):
    """The rank is remembered by the layer, so a second adapter gets the first one's."""

    caught_by: ClassVar = {"test_second_adapter_is_what_it_is_alone", "test_delete_leaves_no_trace"}
    besides: ClassVar = TRACES | {"test_adapters_may_be_called_like_modules"}
    said = "the attribute 'wrong_rank'"

    def __init__(self, base, config, shared=None):
        base.layer.wrong_rank = getattr(base.layer, "wrong_rank", config.r)
        super().__init__(base, type(config)(r=base.layer.wrong_rank, scale=config.scale), shared)


class IgnoresTheSecondConfig(Right):
    """The first config that a layer sees decides for all."""

    caught_by: ClassVar = {"test_second_adapter_is_what_it_is_alone"}
    besides: ClassVar = {"test_adapters_may_be_called_like_modules"}
    said = "Is something of the first adapter's kept"
    scales: ClassVar = WeakKeyDictionary()

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scale = self.scales.setdefault(base.layer, config.scale)


class HoldsSomethingUnsaved(Right):
    """A random projection that no file holds."""

    caught_by: ClassVar = {"test_output_does_not_depend_on_the_generator", "test_save_and_load"}
    besides: ClassVar = FILES | {"test_second_adapter_is_what_it_is_alone"}
    said = "something random that is not saved"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.signs = torch.randn(base.in_features).sign().tolist()

    def delta_weight(self):
        return super().delta_weight() * torch.tensor(self.signs, dtype=self.dtype)

    delta_forward = WeightDelta.delta_forward


class SavesABaseWeight(Right):
    """A copy of the frozen weight lands in the file."""

    caught_by: ClassVar = {"test_file_holds_the_adapter_alone"}
    said = "layers.0.target.weight"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.register_buffer("wrong_weight", base.weight().detach().clone())


class HasAnotherPrefix(Right):
    """A parameter that does not begin with the method's prefix."""

    caught_by: ClassVar = {"test_file_holds_the_adapter_alone"}
    said = "Without the method's prefix 'wrong_'"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.gain = nn.Parameter(torch.ones(1))

    def delta_weight(self):
        return super().delta_weight() * self.gain

    def delta_forward(self, x):
        return super().delta_forward(x) * self.gain


# ------------------------------------------------------------------------------------------- mathematics


class ChangesItsInput(Right):
    """The input is scaled in place."""

    caught_by: ClassVar = {"test_forward_leaves_inputs_and_weights_alone"}
    besides: ClassVar = {
        # Autograd has the input for the gradient of the weight, and complains.
        "test_a_training_step_changes_the_adapter_alone",
        "test_gradients_reach_every_parameter",
        "test_only_the_adapter_trains",
        "test_training_leaves_no_trace",
        "test_merging_in_increments_equals_forward",
        "test_two_merged_adapters_equal_forward",
    }
    said = "change its input in place"

    def delta_forward(self, x):
        return x.mul_(self.scale) @ self.wrong_a.T @ self.wrong_b.T


class HasTheWrongSignMerged(Right):
    """Merged, the change goes the other way."""

    caught_by: ClassVar = {"test_merged_equals_forward"}
    besides: ClassVar = MERGED
    said = "the same sign, scaling and orientation"

    def delta_weight(self):
        return -super().delta_weight()


class ForgetsTheScaleMerged(Right):
    """Merged, the change is not scaled."""

    caught_by: ClassVar = {"test_merged_equals_forward"}
    besides: ClassVar = MERGED
    said = "the same sign, scaling and orientation"

    def delta_weight(self):
        return self.wrong_b @ self.wrong_a


class DependsOnOtherRows(Right):
    """The effect on one row depends on its neighbours."""

    caught_by: ClassVar = {"test_rows_do_not_depend_on_each_other"}
    besides: ClassVar = {"test_mixed_batch_equals_row_by_row"}
    said = "depend on the other rows"
    mergeable = False
    unmergeable_because = "its output depends on the batch"

    def delta_forward(self, x):
        return super().delta_forward(x - x.mean(0))


class ReshapesByTheBatch(Right):
    """An empty batch can't be reshaped with -1."""

    caught_by: ClassVar = {"test_empty_batch"}
    said = "ambiguous"

    def delta_forward(self, x):
        return super().delta_forward(x.reshape(x.shape[0], -1))


class ForgetsACast(Right):
    """It computes in float32, whatever the layer's dtype."""

    caught_by: ClassVar = {"test_bfloat16_model"}
    said = "dtype"

    def delta_forward(self, x):
        return torch.ones(1) * x @ self.wrong_a.T @ self.wrong_b.T * self.scale


class IsNoIdentity(Right):
    """A new adapter changes the output."""

    caught_by: ClassVar = {"test_start_is_the_frozen_model"}
    said = "no_identity_because"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        nn.init.normal_(self.wrong_b)


class DropsOutInEvalMode(Right):
    """It does not ask whether it is trained."""

    caught_by: ClassVar = {"test_modes_follow_the_model"}
    besides: ClassVar = ALL
    said = "drawn at random"

    def delta_forward(self, x):
        return super().delta_forward(nn.functional.dropout(x, 0.5))


class DropoutConfig(LayerConfig, method="wrong"):
    r: int = option(2, "Rank.", at_least=1)
    scale: float = option(1.0, "Factor of the change.")
    loss: float = input_dropout_option()


class DropsTwice(Right):
    """It lets the family drop entries of what it has dropped entries of."""

    caught_by: ClassVar = {"test_input_dropout_leaves_out_entries_of_the_input"}
    said = "begin with self.entering(x), once"
    config_cls = DropoutConfig

    def delta_forward(self, x):
        return super().delta_forward(self.entering(self.entering(x)))


class ForgetsDropout(Right):
    """It acts on the input as it is."""

    caught_by: ClassVar = {"test_input_dropout_leaves_out_entries_of_the_input"}
    said = "begin with self.entering(x), once"
    config_cls = DropoutConfig


class HidesFromTheMode(Right):
    """A dropout that train() and eval() don't reach."""

    caught_by: ClassVar = {"test_modes_follow_the_model", "test_adapter_added_in_eval_mode_is_in_eval_mode"}
    said = "adapters.default"

    def train(self, mode=True):
        return super().train(True)


# ---------------------------------------------------------------------------------------------- training


class TrainsTheBase(Right):
    """It holds the layer's own weight as one of its parameters."""

    caught_by: ClassVar = {"test_only_the_adapter_trains"}
    besides: ClassVar = ALL
    said = "instead of a detached copy"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.wrong_weight = base.layer.weight


class HasAnUnusedParameter(Right):
    """A parameter that nothing reads."""

    caught_by: ClassVar = {"test_gradients_reach_every_parameter"}
    said = "wrong_unused"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.wrong_unused = nn.Parameter(torch.zeros(3))


class NeverLeavesItsStart(Right):
    """Both factors begin as zeros, where all gradients vanish."""

    caught_by: ClassVar = {"test_a_training_step_changes_the_adapter_alone"}
    said = "two factors that are zero"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        nn.init.zeros_(self.wrong_a)


# ------------------------------------------------------------------------------------------------ traces


class LeaksAHook(Right):
    """A hook stays on the layer for good."""

    caught_by: ClassVar = {"test_delete_leaves_no_trace", "test_unload_leaves_no_trace"}
    besides: ClassVar = TRACES
    said = "1 hooks instead of 0"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        base.layer.register_forward_hook(lambda *_: None)


class IgnoresDisable(Right):
    """It acts by a hook on the layer, which nobody can switch off."""

    caught_by: ClassVar = {"test_disabled_adapter_does_nothing"}
    besides: ClassVar = ALL
    said = "by a hook"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        base.layer.register_forward_hook(lambda _, args, y: y + self.delta_forward(self.cast(args[0])).to(y.dtype))

    def delta_weight(self):
        return super().delta_weight() * 2


class WritesToTheWeight(Right):
    """The constructor normalises the frozen weight in place."""

    caught_by: ClassVar = {"test_making_an_adapter_does_not_touch_the_model"}
    besides: ClassVar = ALL
    said = "Does the constructor write"

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        with torch.no_grad():
            base.weight().mul_(0.5)


# ------------------------------------------------------------------------------- more than one, configs, merging


class Turns(Adapter):
    """W' = W · (1 + s · R): a right transform, whose order matters, for wrong ones to derive from."""

    caught_by: ClassVar[set[str]] = set()
    besides: ClassVar[set[str]] = set()
    said = ""
    config_cls = WrongConfig

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.scale = config.scale
        self.wrong_r = nn.Parameter(torch.zeros(base.in_features, base.in_features))

    def forward(self, below, x, *args, **kwargs):
        return below(x + (self.cast(x) @ self.wrong_r.T).to(x.dtype) * self.scale, *args, **kwargs)

    def fold(self, weight, bias):
        return weight + weight.to(self.dtype) @ self.wrong_r * self.scale, bias


class FoldsInAnotherOrder(Turns):
    """Alone it is right; on top of another, the merged weight is turned from the wrong side of the other's."""

    caught_by: ClassVar = {"test_two_merged_adapters_equal_forward"}
    besides: ClassVar = {"test_merging_in_increments_equals_forward"}
    said = "in the order in which forward acts"

    def forward(self, below, x, *args, **kwargs):
        # What comes later acts on what has been turned already, instead of the reverse.
        turned = getattr(below, "func", None)
        if turned is None:
            return super().forward(below, x, *args, **kwargs)
        inner = below.args[0]
        x = (x + (turned.cast(x) @ turned.wrong_r.T).to(x.dtype) * turned.scale).to(x.dtype)
        return super().forward(inner, x, *args, **kwargs)


class FoldsTheFrozenWeight(Turns):
    """It forgets the adapters before it."""

    caught_by: ClassVar = {"test_two_merged_adapters_equal_forward", "test_merging_in_increments_equals_forward"}
    said = "With two active adapters, merged differs from forward"

    def fold(self, weight, bias):
        return super().fold(self.base.weight(), bias)


class SaysThatItCanBeMerged(Right):
    """It depends on the input, and says nothing of it."""

    caught_by: ClassVar = {"test_merged_equals_forward"}
    besides: ClassVar = MERGED

    def delta_forward(self, x):
        return super().delta_forward(x) * x.abs().mean(-1, keepdim=True)


class GivesNoReason(SaysThatItCanBeMerged):
    """It says that it can't be merged, and not why."""

    besides: ClassVar = set()
    caught_by: ClassVar = {"test_what_cannot_be_merged_says_why"}
    said = "say why in `unmergeable_because`"
    mergeable = False


class PairConfig(LayerConfig, method="wrong"):
    r: int = option(2, "Rank.", at_least=1)
    scale: float = option(1.0, "Factor of the change.")
    pair: tuple[int, int] = option((1, 2), "Comes back from JSON as a list.")


class HasAConfigThatJsonChanges(Right):
    """A tuple in its config becomes a list."""

    caught_by: ClassVar = {"test_config_survives_json"}
    said = "pair is [1, 2] instead of (1, 2)"
    config_cls = PairConfig


class RefusesEverything(Right):
    """It names a kind that it supports, and then no config will do."""

    caught_by: ClassVar = {"test_every_kind_and_every_config_is_accepted_somewhere"}
    said = "refuses the sample 'linear' with every config: WrongConfig.r: is too small."

    def __init__(self, base, config, shared=None):
        config.refuse("r", "is too small")


def wrong_adapters(base):
    for cls in base.__subclasses__():
        yield cls
        yield from wrong_adapters(cls)


WRONG = [*wrong_adapters(Right), *wrong_adapters(Turns)]


@pytest.mark.parametrize("adapter_cls", WRONG, ids=lambda cls: cls.__name__)
def test_what_is_wrong_is_caught_by_the_check_that_is_meant_for_it(adapter_cls, failures_of):
    failures = failures_of(Suite, adapter_cls.config_cls, adapter_cls)
    assert adapter_cls.caught_by - set(failures) == set()
    assert set(failures) - adapter_cls.caught_by - adapter_cls.besides == set()
    assert adapter_cls.said in "\n".join(message for name in adapter_cls.caught_by for message in failures[name])
