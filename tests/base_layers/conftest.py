"""What the tests of base layers share."""

import pytest
import torch
from torch import nn

from peftcore.base_layers import BaseLayer


class Folded(nn.Module):
    """The least that can stand in a frozen layer's place: it runs the layer with its weight plus a trained delta."""

    def __init__(self, base: BaseLayer) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.randn(base.weight_shape))
        self.base = base
        self.base_layer = base.layer

    def weight_in_effect(self):
        return (self.base.weight() + self.delta).to(self.base.dtype)

    def forward(self, *args, **kwargs):
        output = self.base.apply(self.weight_in_effect(), *args, **kwargs)
        # Those that are not additive run whole.
        return (
            output if not self.base.additive or self.base.bias is None else self.base.add_bias(output, self.base.bias)
        )

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or "base" not in self.__dict__:
                raise
        if self.base.read_by_owner and name == self.base.weight_name:
            return self.weight_in_effect()
        return getattr(self.base_layer, name)


@pytest.fixture
def folded():
    return Folded


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
