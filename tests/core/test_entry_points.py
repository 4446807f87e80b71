"""get_peft_model's forms, adapters in a model that stays itself, and what a PeftModel answers for."""

import pytest
import torch
from torch import nn

from peftcore import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    inspect_targets,
    set_peft_model_state_dict,
)
from peftcore.exceptions import AdapterNameError, CheckpointError, ConfigError, PeftCoreError, UnknownMethodError

from .methods import PlainConfig, TurnedConfig
from .models import Net, anatomy, assert_as_before, differs, same, stir

X = torch.linspace(-1, 1, 20).reshape(4, 5)
FORMS = {
    "config": lambda path: (PlainConfig(r=3, target_modules=["one"]), {}),
    "name": lambda path: ("plain", {"r": 3, "target_modules": ["one"]}),
    "name in capitals": lambda path: ("PLAIN", {"r": 3, "target_modules": ["one"]}),
    "dict": lambda path: ({"peft_type": "PLAIN", "r": 3, "target_modules": ["one"]}, {}),
    "directory": lambda path: (path, {}),
    "directory as a string": lambda path: (str(path), {}),
    "file": lambda path: (path / "adapter_config.json", {}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_a_config(form, tmp_path):
    PlainConfig(r=3, target_modules=["one"]).save_pretrained(tmp_path)
    given, options = form(tmp_path)
    model = get_peft_model(Net(), given, **options)
    assert model.peft_config["default"] == PlainConfig(r=3, target_modules=["one"])
    assert model.get_base_model().one.adapters["default"].plain_A.shape == (3, 5)


@pytest.mark.parametrize(
    ("given", "options", "error"),
    [
        ("nosuchmethod", {}, UnknownMethodError),
        ("/no/such/place", {}, UnknownMethodError),
        ("plain", {"r": 0}, ConfigError),
        ("plain", {"r": "8"}, ConfigError),
        ({"r": 3}, {}, ConfigError),
        ({"peft_type": "NOSUCH"}, {}, UnknownMethodError),
        ({"peft_type": "PLAIN", "colour": "red"}, {}, ConfigError),
        (PlainConfig(target_modules=["one"]), {"r": 3}, ConfigError),
        (3, {}, ConfigError),
        (None, {}, ConfigError),
    ],
    ids=repr,
)
def test_what_is_no_config(given, options, error):
    net = Net()
    before = anatomy(net)
    with pytest.raises(error) as caught:
        get_peft_model(net, given, **options)
    assert isinstance(caught.value, PeftCoreError)
    assert_as_before(net, before)


def test_an_option_that_the_method_does_not_have():
    with pytest.raises((ConfigError, TypeError), match="colour"):
        get_peft_model(Net(), "plain", colour="red")


def test_a_directory_without_a_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        get_peft_model(Net(), tmp_path)


def test_the_callers_config_stays_his(tmp_path):
    config = PlainConfig(target_modules=["one"])
    get_peft_model(Net(), config, revision="v1").save_pretrained(tmp_path)
    PeftModel.from_pretrained(Net(), tmp_path, config=config)
    assert config == PlainConfig(target_modules=["one"])


# ---------------------------------------------------------------------------------- adapted in place


def test_a_model_adapted_in_place_is_itself():
    net = Net()
    assert inject_adapter_in_model(PlainConfig(target_modules=["one"]), net) is net
    inject_adapter_in_model(TurnedConfig(target_modules=["two"]), net, "b")
    assert list(get_peft_model_state_dict(net)) == ["one.plain_A", "one.plain_B"]
    assert list(get_peft_model_state_dict(net, adapter_name="b")) == ["two.turned_R"]
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained == ["one.adapters.default.plain_A", "one.adapters.default.plain_B"]
    with pytest.raises(AdapterNameError):
        inject_adapter_in_model(PlainConfig(target_modules=["one"]), net)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""], ids=["as in files", "bare"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_its_tensors_go_into_another(prefix, low_cpu_mem_usage):
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    config = PlainConfig(target_modules=["one", "two"], modules_to_save=["head"])
    inject_adapter_in_model(config, net)
    state = {prefix + key.removeprefix("base_model.model."): v for key, v in get_peft_model_state_dict(net).items()}
    inject_adapter_in_model(config, other, low_cpu_mem_usage=low_cpu_mem_usage)
    differs(other(X), net(X)) if not low_cpu_mem_usage else None
    report = set_peft_model_state_dict(other, state, low_cpu_mem_usage=low_cpu_mem_usage)
    assert report.complete
    same(other(X), net(X))
    third = Net()
    third.load_state_dict({k.replace(".base_layer", ""): v for k, v in net.state_dict().items() if "default" not in k})
    inject_adapter_in_model(config, third, state_dict=state)
    same(third(X), net(X))


def test_tensors_that_do_not_fit_leave_the_model_alone():
    net = Net()
    before = anatomy(net)
    with pytest.raises(CheckpointError):
        inject_adapter_in_model(PlainConfig(target_modules=["one"]), net, state_dict={"one.plain_A": torch.ones(2, 5)})
    assert_as_before(net, before)


def test_a_state_dict_of_the_whole_model_serves_too():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"], modules_to_save=["head"]))
    doubled = {name: 2 * value for name, value in model.state_dict().items()}
    taken = get_peft_model_state_dict(model, state_dict=doubled)
    own = get_peft_model_state_dict(model)
    assert taken.keys() == own.keys()
    assert all(torch.equal(taken[key], 2 * own[key]) for key in own)
    with pytest.raises(CheckpointError, match="lacks"):
        get_peft_model_state_dict(model, state_dict={})


def test_injecting_into_a_peft_model_adds_to_its_adapters():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"]))
    expected = model(X)
    inject_adapter_in_model(TurnedConfig(target_modules=["one"]), model, "b")
    assert list(model.peft_config) == ["default", "b"]
    assert model.active_adapters == ["default"]
    same(model(X), expected)
    assert all(p.requires_grad for p in model.base_model.tuner("default").parameters())


def test_a_model_adapted_in_place_can_be_held_by_a_peft_model():
    net = Net()
    inject_adapter_in_model(PlainConfig(target_modules=["one"]), net)
    model = get_peft_model(net, TurnedConfig(target_modules=["one"]), "b")
    assert list(model.peft_config) == ["default", "b"]
    with pytest.raises(AdapterNameError):
        get_peft_model(net, TurnedConfig(target_modules=["one"]), "b")


def test_inspecting_changes_nothing():
    net = Net()
    before = anatomy(net)
    report = inspect_targets(net, PlainConfig(target_modules=["one", "nowhere"]))
    assert [match.path for match in report.matched] == ["one"]
    assert_as_before(net, before)


# --------------------------------------------------------------------------------------- answering for others


class Named(nn.Module):
    """A model whose attributes are called like some of the library's own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5)])
        self.shared = nn.Linear(5, 5)
        self.config = {"model_type": "named"}

    def forward(self, x):
        return self.shared(self.layers[0](x))

    def load(self):
        return "loaded"

    def insert(self):
        return "inserted"


@pytest.mark.parametrize("attribute", ["layers", "shared", "config", "load", "insert"])
def test_attributes_are_the_users_models(attribute):
    net = Named()
    model = get_peft_model(net, PlainConfig(target_modules=["layers.0"]))
    assert getattr(model, attribute) == getattr(net, attribute)


def test_an_attribute_that_nobody_has():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"]))
    with pytest.raises(AttributeError, match="colour"):
        _ = model.colour
    with pytest.raises(AttributeError, match=r"Linear.*'colour'"):
        _ = model.get_base_model().one.colour


def test_an_adapted_layer_answers_for_the_frozen_one():
    net = Net()
    one = net.one
    model = get_peft_model(net, PlainConfig(target_modules=["one"], strength=3.0))
    assert net.one.weight is one.weight and net.one.bias is one.bias
    assert (net.one.in_features, net.one.out_features) == (5, 6)
    assert net.one.get_base_layer() is one
    assert dict(net.one.strength) == {"default": 3.0}
    with pytest.raises(TypeError):
        net.one.strength["default"] = 4.0
    model.add_adapter("b", TurnedConfig(target_modules=["one"]))
    assert dict(net.one.strength) == {"default": 3.0}


def test_counting_parameters(capsys):
    model = get_peft_model(Net(), PlainConfig(target_modules=["one"], r=2))
    trained = 2 * 5 + 6 * 2
    total = trained + sum(p.numel() for p in Net().parameters())
    assert model.get_nb_trainable_parameters() == (trained, total)
    model.print_trainable_parameters()
    assert f"trainable params: {trained:,d} || all params: {total:,d}" in capsys.readouterr().out


def test_what_is_not_known_is_refused(tmp_path):
    model = stir(get_peft_model(Net(), PlainConfig(target_modules=["one"])))
    with pytest.raises(TypeError, match="save_embedding_layers"):
        model.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(AdapterNameError, match="nobody"):
        model.save_pretrained(tmp_path, selected_adapters=["nobody"])
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []
