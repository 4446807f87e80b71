import pytest
import torch

from peftcore import register_peft_method, unregister_peft_method

from .methods import METHODS


@pytest.fixture(autouse=True, scope="module")
def tiny_methods():
    """Register the tiny methods for one file, so that no other test sees them."""
    for method in METHODS:
        register_peft_method(method)
    yield
    for method in METHODS:
        unregister_peft_method(method.name)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
