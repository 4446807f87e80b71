"""What the core keeps of LoRA's factors for batches whose rows have different adapters, and when it lets go of it."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from peftcore import get_peft_model
from peftcore_lora import LoraConfig
from peftcore_lora.adapter import Factor

NAMES = ["b", "a", "b"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(5, 6)), config, "a")
    model.add_adapter("b", config)
    return model.eval()


def scaling(part):
    part.scaling = 3.0


def weight(part):
    part.lora_A.weight = nn.Parameter(torch.randn(2, 5))


def module(part):
    part.lora_B = Factor(torch.randn(6, 2))


@torch.no_grad()
def in_place(part):
    part.lora_B.weight.mul_(2)


def memory(part):
    part.lora_A.weight.data = torch.randn(2, 5)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(part):
    register_parametrization(part.lora_A, "weight", Doubled())


def bias(part):
    part.lora_bias = True
    part.lora_B.bias = nn.Parameter(torch.randn(6))


@pytest.mark.parametrize("change", [scaling, weight, module, in_place, memory, parametrized, bias])
def test_every_change_is_noticed(model, change):
    x = torch.randn(3, 5)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for _ in range(3):
            before = model(x, adapter_names=NAMES)
        assert layer._stacks._kept.places, "the core does not know where the factors stand"
        change(layer.adapters["a"])
        after = model(x, adapter_names=NAMES)
        assert not torch.allclose(after[1], before[1], atol=1e-3)
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
        model.set_adapter("a")
        torch.testing.assert_close(after[1], model(x)[1])
