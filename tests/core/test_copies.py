"""Copies of adapted models: deepcopy, pickle, torch.save."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, inject_adapter_in_model
from peftcore.base_layers.base import BaseLayer

from .methods import BankedConfig, PlainConfig, ScaledConfig
from .models import Single, Words, differs, same, stir

IDS = torch.arange(8).reshape(2, 4)


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": through_torch}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


@pytest.fixture
def model():
    config = PlainConfig(
        target_modules=["lin"], trainable_token_indices={"emb": [1, 4]}, bias="all", rank_pattern={"lin": 1}
    )
    model = get_peft_model(Words(tied=True, head_bias=True), config, "a")
    model.add_adapter("b", ScaledConfig(target_modules=["lin"], modules_to_save=["head"]))
    model.add_adapter("c", PlainConfig(target_modules=["lin", "emb"]))
    return stir(model, "a", "b", "c")


def test_a_copy_acts_alike_and_stands_alone(model, way):
    outputs = {}
    for name in "abc":
        model.set_adapter(name)
        outputs[name] = model(IDS)
    copied = way(model)
    assert copied.active_adapters == ["c"]
    for name in "abc":
        copied.set_adapter(name)
        same(copied(IDS), outputs[name])
    mixed = copied(IDS, adapter_names=["b", "a"])
    same(mixed, torch.stack([outputs["b"][0], outputs["a"][1]]))
    with copied.disable_adapter():
        differs(copied(IDS), outputs["c"])
        same(model(IDS), outputs["c"])
    stir(copied, "c")
    copied.delete_adapter("b")
    same(model(IDS), outputs["c"])
    assert list(model.peft_config) == ["a", "b", "c"]
    assert model.state_dict().keys() > copied.state_dict().keys()


def test_a_copy_of_a_merged_model_can_be_unmerged(model, way):
    model.set_adapter("a")
    expected = model(IDS)
    model.merge_adapter()
    copied = way(model)
    model.unmerge_adapter()
    same(copied(IDS), expected)
    copied.unmerge_adapter()
    same(copied(IDS), expected)
    for (name, here), (_, there) in zip(model.state_dict().items(), copied.state_dict().items(), strict=True):
        torch.testing.assert_close(here, there, msg=name)


def test_the_views_are_of_the_copied_layers(model, way):
    copied = way(model)
    frozen = {id(module) for module in copied.modules()}
    for layer in copied.base_model.layers():
        assert id(layer.base.layer) in frozen
        for part in [part for name in layer.names() for part in layer.parts(name)]:
            assert isinstance(part.base, BaseLayer)
            assert id(part.base.layer) in frozen


def test_a_model_adapted_in_place(way):
    words = inject_adapter_in_model(PlainConfig(target_modules=["lin"]), Words())
    copied = way(words)
    same(copied(IDS), words(IDS))
    inject_adapter_in_model(PlainConfig(target_modules=["lin"]), copied, "b")
    assert words.lin.names() == ["default"]


def test_shared_state_stays_shared(way):
    model = get_peft_model(Words(), BankedConfig(target_modules=["lin", "head"]))
    copied = way(model)
    before = copied(IDS)
    with torch.no_grad():
        (bank,) = (p for name, p in copied.named_parameters() if "banked_bank" in name)
        bank.add_(1.0)
    differs(copied(IDS), before)
    same(model(IDS), before)


class Particular(nn.Linear):
    """A layer that copies itself in its own way."""

    def __deepcopy__(self, memo):
        copied = Particular(self.in_features, self.out_features)
        copied.load_state_dict(self.state_dict())
        return copied


def test_a_layers_own_way_of_copying_is_not_the_adapted_layers():
    model = get_peft_model(Single(Particular(5, 5)), PlainConfig(target_modules=["layer"]))
    x = torch.randn(3, 5)
    same(copy.deepcopy(model)(x), model(x))
