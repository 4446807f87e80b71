"""Both methods keep what every method promises, and are the papers' formulas."""

import torch
from bottleneck_adapters import ParallelAdapterConfig, SequentialAdapterConfig
from torch import nn

from peftcore import PeftType, get_peft_model
from peftcore.testing import LayerMethodTests


class TestSequentialAdapter(LayerMethodTests):
    method = "sequential_adapter"
    configs = ({"width": 2}, {"width": 3})


class TestParallelAdapter(LayerMethodTests):
    method = "parallel_adapter"
    configs = ({"width": 2}, {"width": 3, "scaling": 0.5})


def trained(layer, config):
    """Return an adapted model, and the factors of its bottleneck, both away from zero."""
    model = get_peft_model(nn.Sequential(layer), config)
    down, up = (nn.init.normal_(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return model, down, up


def test_the_sequential_one_reads_the_output():
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    y = layer(x)
    model, down, up = trained(layer, SequentialAdapterConfig(width=2, target_modules=["0"]))
    torch.testing.assert_close(model(x), y + torch.relu(y @ down.T) @ up.T)


def test_the_parallel_one_reads_the_input():
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    y = layer(x)
    model, down, up = trained(layer, ParallelAdapterConfig(width=2, scaling=3.0, target_modules=["0"]))
    torch.testing.assert_close(model(x), y + 3.0 * torch.relu(x @ down.T) @ up.T)


def test_both_are_members_of_the_open_enumeration_and_act_together():
    assert {"SEQUENTIAL_ADAPTER", "PARALLEL_ADAPTER"} <= set(map(str, PeftType))
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    y = layer(x)
    model, down, up = trained(layer, ParallelAdapterConfig(width=2, target_modules=["0"]))
    model.add_adapter("second", SequentialAdapterConfig(width=2, target_modules=["0"]))
    model.set_adapter(["default", "second"])
    torch.testing.assert_close(model(x), y + 4.0 * torch.relu(x @ down.T) @ up.T)
