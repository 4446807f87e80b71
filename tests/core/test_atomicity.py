"""What is refused, or fails half way, leaves the model exactly as it was."""

import pytest
import torch

from peftcore import PeftModel, get_peft_model, inject_adapter_in_model
from peftcore.exceptions import AdapterNameError, ConfigError, PeftCoreError, TargetError

from .methods import PlainAdapter, PlainConfig, TurnedConfig
from .models import Net, Words, anatomy, assert_as_before

CONFIG = PlainConfig(target_modules=["one", "two", "head"])


@pytest.fixture
def failing_third(monkeypatch):
    """Let the third adapter module of the method fail while it is made."""
    made = []
    original = PlainAdapter.__init__

    def init(self, base, config, shared=None):
        original(self, base, config, shared)
        made.append(self)
        if len(made) == 3:
            raise RuntimeError("the third one fails")

    monkeypatch.setattr(PlainAdapter, "__init__", init)
    return made


@pytest.mark.parametrize("enter", [get_peft_model, PeftModel, lambda m, c: inject_adapter_in_model(c, m)])
def test_a_constructor_that_fails_on_the_third_layer(failing_third, enter):
    net = Net().eval()
    net.one.weight.requires_grad_(False)
    before = anatomy(net)
    with pytest.raises(RuntimeError, match="third"):
        enter(net, CONFIG)
    assert len(failing_third) == 3
    assert_as_before(net, before)


def test_the_same_beside_an_adapter_that_is_merged(failing_third):
    model = get_peft_model(Net(), TurnedConfig(target_modules=["one", "two"]))
    model.merge_adapter()
    before = anatomy(model)
    with pytest.raises(RuntimeError, match="third"):
        model.add_adapter("b", CONFIG)
    assert_as_before(model, before)
    assert list(model.peft_config) == ["default"]
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("name", ["", "a.b", ".", "__base__", None, 3, "default"], ids=repr)
def test_names_that_are_taken_or_no_legal_key(name):
    model = get_peft_model(Net(), CONFIG)
    before = anatomy(model)
    with pytest.raises(AdapterNameError, match=str(name).replace(".", r"\.") if name else "name"):
        model.add_adapter(name, CONFIG)
    assert_as_before(model, before)
    net = Net()
    before = anatomy(net)
    if name != "default":
        with pytest.raises(AdapterNameError):
            get_peft_model(net, CONFIG, adapter_name=name)
    assert_as_before(net, before)


@pytest.mark.parametrize(
    "name", ["0", "weight", "one", "adapters", "base_layer", "forward", "model", "ä", "a b", "keys"]
)
def test_any_other_name_serves(name):
    model = get_peft_model(Net(), CONFIG, adapter_name=name)
    model.add_adapter("other", CONFIG)
    model(torch.ones(2, 5), adapter_names=[name, "other"])
    assert len([key for key in model.state_dict() if f".{name}.plain_A" in key]) == 3
    model.delete_adapter(name)
    assert model.active_adapters == ["other"]


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (PlainConfig(target_modules=["nowhere"]), TargetError),
        (PlainConfig(target_modules=["lin"], modules_to_save=["nowhere"]), TargetError),
        (PlainConfig(target_modules=["lin"], trainable_token_indices={"emb": [99]}), TargetError),
        (PlainConfig(target_parameters=["emb.nowhere"]), TargetError),
        (PlainConfig(target_modules=["part"], canonical_modules={"lin": [*"abcdefg", "part"]}), TargetError),
        (TurnedConfig(target_modules=["emb"]), TargetError),
    ],
    ids=["targets", "saved", "tokens", "parameters", "parts", "kind"],
)
def test_wishes_that_the_model_can_not_grant(config, error):
    words = Words()
    before = anatomy(words)
    with pytest.raises(error):
        get_peft_model(words, config)
    assert_as_before(words, before)


def test_a_config_that_was_spoilt_after_it_was_made():
    config = PlainConfig(target_modules=["one"])
    config.r = "8"
    net = Net()
    before = anatomy(net)
    with pytest.raises(ConfigError, match="r: must be int"):
        get_peft_model(net, config)
    assert_as_before(net, before)


def test_a_peft_model_is_not_wrapped_again():
    model = get_peft_model(Net(), CONFIG)
    before = anatomy(model)
    with pytest.raises(TypeError, match="add_adapter"):
        get_peft_model(model, CONFIG, "b")
    assert_as_before(model, before)


def test_the_adapter_keeps_a_config_of_its_own():
    config = PlainConfig(target_modules=["one"], r=2)
    model = get_peft_model(Net(), config)
    config.r = 7
    assert model.peft_config["default"].r == 2


def test_an_error_is_one_of_ours():
    with pytest.raises(PeftCoreError):
        get_peft_model(Net(), 3)
