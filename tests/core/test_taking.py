"""Parameters that take values."""

import pytest
import torch
from torch import nn

from peftcore.adapters.taking import take


@pytest.mark.parametrize("value", [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 5)], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("trains", [True, False])
def test_a_parameter_has_the_value_and_stays_what_it_was(value, device, trains):
    module = nn.Linear(3, 2, device=device).requires_grad_(trains)
    take(module, "weight", value)
    assert torch.equal(module.weight, torch.ones(value.shape))
    assert (type(module.weight), module.weight.dtype, module.weight.requires_grad) == (
        nn.Parameter,
        torch.float32,
        trains,
    )
    assert module.weight.is_leaf


def test_a_parameter_of_the_same_shape_stays_the_same_object():
    module = nn.Linear(3, 2)
    before = module.weight
    take(module, "weight", torch.ones(2, 3))
    assert module.weight is before


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(2, 3), (4, 5)])
def test_the_value_is_copied(device, shape):
    module, value = nn.Linear(3, 2, device=device), torch.ones(shape)
    take(module, "weight", value)
    value.zero_()
    assert torch.equal(module.weight, torch.ones(shape))
