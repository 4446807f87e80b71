"""What is special about IA3: which layers are feedforward ones, and what is refused."""

import peft
import pytest
import torch
from torch import nn

from peftcore import get_peft_model, inspect_targets
from peftcore.exceptions import ConfigError, TargetError, UnsupportedLayerError
from peftcore_ia3 import IA3Config


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.key = nn.Linear(4, 6)
        self.output = nn.Linear(6, 4)

    def forward(self, x):
        return self.output(torch.tanh(self.key(x)))


def net():
    return nn.Sequential(Block(), Block())


def scaled_inputs(model):
    """Paths of the layers whose input is scaled."""
    placements = model.base_model.tuner("default").placements
    return {placement.path for placement in placements if placement.adapter.is_feedforward}


@pytest.mark.parametrize(
    ("feedforward", "expected"),
    [
        (None, set()),
        ([], set()),
        (["output"], {"0.output", "1.output"}),
        (["1.output"], {"1.output"}),
        (["*.output", "0.key"], {"0.key", "0.output", "1.output"}),
        (r"0\..*", {"0.key", "0.output"}),
    ],
)
def test_feedforward_modules_are_read_as_targets_are(feedforward, expected):
    config = IA3Config(target_modules=["key", "output"], feedforward_modules=feedforward)
    model = get_peft_model(net(), config)
    assert scaled_inputs(model) == expected
    for placement in model.base_model.tuner("default").placements:
        features = placement.base.in_features if placement.path in expected else placement.base.out_features
        assert placement.adapter.ia3_l.numel() == features
    assert config.feedforward_modules == (set(feedforward) if isinstance(feedforward, list) else feedforward)


def test_what_the_model_s_type_made_of_it_is_saved(tmp_path):
    model = net()
    model.config = {"model_type": "bert"}
    model[1].dense, model[1].output = nn.Linear(4, 4), nn.Sequential()
    model[1].output.dense = nn.Linear(6, 4)
    model = get_peft_model(model, IA3Config(target_modules=["key", "output.dense"]))
    assert scaled_inputs(model) == {"1.output.dense"}
    model.save_pretrained(tmp_path)
    assert IA3Config.from_pretrained(tmp_path).feedforward_modules == {"output.dense"}


@pytest.mark.parametrize("targets", ["all-linear", ["key", "output"]])
def test_hf_peft_reads_feedforward_modules_that_are_none_of_the_targets_names(targets, tmp_path):
    """It refuses a list with other names than the targets', which an expression may mean."""
    model = get_peft_model(net(), IA3Config(target_modules=targets, feedforward_modules=["1.output"]))
    model.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(net(), tmp_path)
    assert {name for name, module in theirs.named_modules() if getattr(module, "is_feedforward", False)} == {
        "base_model.model.1.output"
    }
    assert scaled_inputs(type(model).from_pretrained(net(), tmp_path)) == {"1.output"}


@pytest.mark.parametrize("entry", [["key", "output"], ["outputs"], r".*\.output"])
def test_feedforward_modules_that_are_no_targets_are_refused(entry):
    model = net()
    before = dict(model.named_modules())
    with pytest.raises(TargetError, match=r"feedforward_modules: .*outputs?'.* 0\.key, 1\.key"):
        get_peft_model(model, IA3Config(target_modules=["key"], feedforward_modules=entry))
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.warns(UserWarning, match="feedforward_modules"):
        get_peft_model(model, IA3Config(target_modules=["key"], feedforward_modules=entry), on_unmatched="warn")


def test_a_file_may_list_feedforward_modules_that_the_model_does_not_have(tmp_path):
    model = get_peft_model(net(), IA3Config(target_modules=["key"], feedforward_modules=["key"]))
    model.peft_config["default"].feedforward_modules = {"key", "fc2"}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(net(), tmp_path)
    assert scaled_inputs(loaded) == {"0.key", "1.key"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feedforward_modules", 3),
        ("feedforward_modules", [["key"]]),
        ("feedforward_modules", [1]),
        ("init_ia3_weights", "yes"),
        ("fan_in_fan_out", 1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"IA3Config.{field}"):
        IA3Config(**{field: value})


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="regular expression"):
        IA3Config(feedforward_modules="(")


def test_the_inputs_of_an_embedding_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="token ids"):
        get_peft_model(model, IA3Config(target_modules=["0", "1"], feedforward_modules=["0"]))
    assert isinstance(model[0], nn.Embedding)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_without_such_outputs_are_refused():
    with pytest.raises(UnsupportedLayerError, match="MultiheadAttention"):
        get_peft_model(nn.Sequential(nn.MultiheadAttention(4, 2)), IA3Config(target_modules=["0"]))


def test_looking_at_targets_needs_no_feedforward_modules():
    assert len(inspect_targets(net(), IA3Config(target_modules=["key"])).matched) == 2
