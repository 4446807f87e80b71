"""get_layer_status and get_model_status."""

import pytest
import torch

from peftcore import get_peft_model

from .methods import PlainConfig, TurnedConfig
from .models import Net


@pytest.fixture
def model():
    model = get_peft_model(Net(), PlainConfig(target_modules=["one", "two"]), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["one"], modules_to_save=["head"]))
    return model


def by_name(model):
    return {status.name: status for status in model.get_layer_status()}


def test_each_layer(model):
    layers = by_name(model)
    assert list(layers) == ["one", "two", "head"]
    assert {name: status.available_adapters for name, status in layers.items()} == {
        "one": ["a", "b"],
        "two": ["a"],
        "head": ["b"],
    }
    one = layers["one"]
    assert (one.module_type, one.enabled, one.active_adapters, one.merged_adapters) == ("Linear", True, ["a"], [])
    assert one.requires_grad == {"a": True, "b": False}
    assert one.devices == {"a": ["cpu"], "b": ["cpu"]}


def test_the_model_as_a_whole(model):
    status = model.get_model_status()
    assert (status.base_model_type, status.adapter_model_type) == ("Net", "PeftModel")
    assert status.peft_types == {"a": "PLAIN", "b": "TURNED"}
    assert status.num_adapter_layers == 3
    assert (status.trainable_params, status.total_params) == model.get_nb_trainable_parameters()
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["a"], [])
    assert status.requires_grad == {"a": True, "b": False}
    assert status.available_adapters == ["a", "b"]
    assert status.devices == {"a": ["cpu"], "b": ["cpu"]}


def test_after_switching_merging_and_disabling(model):
    model.set_adapter(["a", "b"])
    assert model.get_model_status().active_adapters == ["a", "b"]
    model.merge_adapter(["a"])
    assert model.get_model_status().merged_adapters == ["a"]
    assert by_name(model)["two"].merged_adapters == ["a"]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
        assert not any(status.enabled for status in model.get_layer_status())


def test_what_is_irregular_is_called_so(model):
    net = model.get_base_model()
    net.one.merge(["a"])
    assert model.get_model_status().merged_adapters == "irregular"
    net.one.unmerge()
    net.two.adapters["a"].plain_A.requires_grad_(False)
    assert by_name(model)["two"].requires_grad == {"a": "irregular"}
    assert model.get_model_status().requires_grad == {"a": "irregular", "b": False}


def test_devices(model):
    model.get_base_model().two.to("meta")
    assert model.get_model_status().devices == {"a": ["cpu", "meta"], "b": ["cpu"]}
    assert torch.device("meta").type in by_name(model)["two"].devices["a"]
