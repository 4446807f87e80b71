"""What is special about BEFT: the bias that appears, and what is refused."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.exceptions import ConfigError, UnsupportedLayerError
from peftcore_beft import BeftConfig


def test_merged_a_layer_without_a_bias_has_the_shift_for_one():
    layer = nn.Linear(4, 3, bias=False)
    model, x = get_peft_model(nn.Sequential(layer), BeftConfig(target_modules=["0"])), torch.randn(2, 4)
    frozen = layer(x)
    shift = torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        model.base_model.model[0].adapters["default"].beft_bias.copy_(shift)
    torch.testing.assert_close(model(x), frozen + shift)
    model.merge_adapter()
    torch.testing.assert_close(layer.bias.detach(), shift)
    model.unmerge_adapter()
    assert layer.bias is None


def test_two_shifts_add_up_and_may_be_merged_in_any_order():
    config, x = BeftConfig(target_modules=["0"]), torch.randn(2, 4)
    model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config, "one")
    model.add_adapter("two", config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        frozen = model(x)
        layer.adapters["one"].beft_bias.fill_(2.0)
        layer.adapters["two"].beft_bias.fill_(-0.5)
    model.set_adapter(["one", "two"])
    torch.testing.assert_close(model(x), frozen + 1.5)
    model.merge_adapter(["two"])
    torch.testing.assert_close(model(x), frozen + 1.5)


def test_a_value_that_makes_no_sense_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"BeftConfig\.init_weights"):
        BeftConfig(init_weights="zeros")


@pytest.mark.parametrize("layer", [nn.Embedding(5, 4), nn.MultiheadAttention(4, 2), nn.LayerNorm(4)])
def test_layers_that_can_t_hold_a_shift_are_refused(layer):
    model = nn.Sequential(layer)
    with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
        get_peft_model(model, BeftConfig(target_modules=["0"]))
    assert model[0] is layer
