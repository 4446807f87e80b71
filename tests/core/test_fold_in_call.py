"""What training drops out of a folded weight: fold_in_call, for adapters of any family."""

import pytest
import torch
from torch import nn

from peftcore import LayerConfig, PeftMethod, get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.base import Adapter

from .models import Single, same


class ThinnedConfig(LayerConfig, method="thinned"):
    pass


class Thinned(Adapter):
    """Doubles the weight; for one call in training, it leaves out all of it."""

    def acts_by_weight(self, before):
        return True

    def fold(self, weight, bias):
        return 2 * weight, bias

    def fold_in_call(self, weight, bias):
        return (0 * weight, bias) if self.training else super().fold_in_call(weight, bias)


@pytest.fixture(autouse=True, scope="module")
def _method():
    register_peft_method(PeftMethod(name="thinned", config_cls=ThinnedConfig, adapter_cls=Thinned))
    yield
    unregister_peft_method("thinned")


def test_a_call_drops_and_a_merged_weight_does_not():
    layer, x = nn.Linear(4, 3, bias=False), torch.randn(2, 4)
    doubled = 2 * layer(x)
    model = get_peft_model(Single(layer), ThinnedConfig(target_modules=["layer"]))
    same(model.eval()(x), doubled)
    same(model.train()(x), 0 * doubled)
    model.merge_adapter()
    same(model(x), doubled)
