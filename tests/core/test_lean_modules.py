"""A lean module starts exactly as torch's own do."""

import pytest
from torch import nn

from peftcore.adapted_layer import AdaptedLayer
from peftcore.adapters.base import Adapter, AdapterDict
from peftcore.modules import LeanModule


def test_a_lean_module_has_the_attributes_of_a_new_module() -> None:
    lean, torchs = vars(LeanModule()), vars(nn.Module())
    assert lean == torchs
    assert all(type(lean[name]) is type(value) for name, value in torchs.items())


def test_no_two_lean_modules_share_a_container() -> None:
    one, other = vars(LeanModule()), vars(LeanModule())
    containers = [name for name, value in one.items() if isinstance(value, (dict, set))]
    assert containers
    assert all(one[name] is not other[name] for name in containers)


@pytest.mark.parametrize("cls", [Adapter, AdapterDict, AdaptedLayer])
def test_what_stands_on_every_layer_is_lean(cls: type[nn.Module]) -> None:
    assert issubclass(cls, LeanModule)
