"""The family Selective, for methods of their own: copies of whole modules, rows of embeddings."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.selective import ModuleCopy, TrainedTokens
from peftcore.auxiliary import bare_copy
from peftcore.base_layers import OpaqueLayer
from peftcore.config import LayerConfig
from peftcore.exceptions import CompositionError
from peftcore.method import PeftMethod
from peftcore.tuner import LayerTuner

from .methods import PlainConfig
from .models import Single, Words, differs, same, stir

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[0, 3, 5, 3], [9, 1, 5, 10]])


class CopiedConfig(LayerConfig, method="copied"):
    pass


class CopiedAdapter(ModuleCopy):
    def __init__(self, base, config, shared=None):
        super().__init__(base, bare_copy(base.layer))


class CopiedTuner(LayerTuner):
    def view(self, module):
        return OpaqueLayer(module)


@pytest.fixture(autouse=True, scope="module")
def _method():
    register_peft_method(
        PeftMethod(name="copied", config_cls=CopiedConfig, adapter_cls=CopiedAdapter, tuner_cls=CopiedTuner)
    )
    yield
    unregister_peft_method("copied")


def norms():
    """Modules in bfloat16, with buffers that are and buffers that are not."""
    batch = nn.BatchNorm1d(5)
    angles = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
    model = nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6), batch, angles).bfloat16()
    angles.register_buffer("fine", torch.ones(2))
    return model


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_copy_in_a_finer_dtype_does_what_the_module_does(mode):
    base = norms().train(mode)
    model = get_peft_model(norms().train(mode), CopiedConfig(target_modules=["0", "1", "2", "3"]))
    model.base_model.model.load_state_dict(model.base_model.model.state_dict())
    x = X.bfloat16()
    for _ in range(2):
        for plain, layer in zip(base, model.base_model.model, strict=True):
            layer.adapters["default"].module.load_state_dict(plain.state_dict(), strict=True)
        assert torch.equal(model(x), base(x))
    copies = [layer.adapters["default"].module for layer in model.base_model.model]
    assert {p.dtype for copy in copies for p in copy.parameters()} == {torch.float32}
    assert copies[2].running_mean.dtype == torch.bfloat16
    assert copies[3].fine.dtype == torch.float32
    assert torch.equal(copies[2].running_mean, base[2].running_mean)


def test_settled_it_is_as_the_module_was():
    model = get_peft_model(norms().eval(), CopiedConfig(target_modules=["0", "1", "2", "3"]))
    stir(model)
    x = X.bfloat16()
    expected = model(x)
    merged = model.merge_and_unload()
    assert [type(module) for module in merged] == [type(module) for module in norms()]
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert merged[3].fine.dtype == torch.float32
    assert torch.equal(merged(x), expected)


def test_without_a_finer_dtype_the_copy_itself_is_called():
    calls = []
    model = get_peft_model(norms().eval(), CopiedConfig(target_modules=["0"]), autocast_adapter_dtype=False)
    copy = model.base_model.model[0].adapters["default"].module
    copy.register_forward_hook(lambda *_: calls.append(1))
    model(X.bfloat16())
    assert calls == [1]
    assert copy.weight.dtype == torch.bfloat16


def test_copies_of_one_module_do_not_act_together():
    model = get_peft_model(norms(), CopiedConfig(target_modules=["0"]), "a")
    model.add_adapter("b", CopiedConfig(target_modules=["0", "1"]))
    with pytest.raises(CompositionError, match="Activate one of them"):
        model.set_adapter(["a", "b"])


def test_a_bare_copy_has_no_adapters_in_it():
    model = get_peft_model(nn.Sequential(nn.Sequential(nn.Linear(6, 6))), PlainConfig(target_modules=["0.0"]))
    inside = model.base_model.model[0]
    bare = bare_copy(inside)
    assert [type(module) for module in bare.modules()] == [nn.Sequential, nn.Linear]
    assert torch.equal(bare[0].weight, inside[0].base_layer.weight)
    assert bare[0].weight is not inside[0].base_layer.weight
    differs(bare(X), stir(inside)(X)) if False else None


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 4


class Positions(nn.Embedding):
    """Looks up other rows than it is asked for, as tables of positions do."""

    def forward(self, ids):
        return super().forward(ids.flip(-1))


@pytest.mark.parametrize("embedding", [ScaledEmbedding, Positions])
@pytest.mark.parametrize("beside", [False, True], ids=["", "beside a delta"])
def test_rows_of_an_embedding_with_a_forward_of_its_own(embedding, beside):
    """At the start the model is as it was; then forward, merged and mixed are one."""
    words = Words()
    words.emb = embedding(11, 6)
    frozen = words(IDS)
    model = get_peft_model(words, PlainConfig(target_modules=["lin"], trainable_token_indices=[5, 0, 9]), "rows")
    with torch.no_grad():
        for part in model.base_model.model.lin.adapters.children():
            part.plain_B.zero_()
    same(model(IDS), frozen)
    if beside:
        model.add_adapter("delta", PlainConfig(target_modules=["emb"]))
        model.set_adapter(["delta", "rows"])
    stir(model)
    expected = model(IDS)
    differs(expected, frozen)
    same(model(IDS, adapter_names=["__base__", "__base__"]), frozen)
    model.merge_adapter()
    same(model(IDS), expected)
    model.unmerge_adapter()
    same(model(IDS), expected)
    table = words.emb.base_layer.weight.detach().clone()
    if not beside:
        table[[5, 0, 9]] = model.base_model.model.emb.auxiliary["rows"].trainable_tokens_delta.detach()
        other = embedding(11, 6)
        other.weight.data = table
        same(words.emb(IDS), other(IDS))


def test_rows_start_from_the_frozen_weight_while_something_is_merged():
    words = Words()
    table = words.emb.weight.detach().clone()
    model = get_peft_model(words, PlainConfig(target_modules=["lin"], trainable_token_indices=[5]), "a")
    stir(model)
    model.merge_adapter()
    model.add_adapter("b", PlainConfig(target_modules=["lin"], trainable_token_indices=[5, 2]))
    assert torch.equal(words.emb.auxiliary["b"].trainable_tokens_delta, table[[5, 2]])


def test_rows_start_from_the_frozen_weight_while_a_change_of_it_is_merged():
    words = Words()
    table = words.emb.weight.detach().clone()
    model = get_peft_model(words, PlainConfig(target_modules=["emb"]), "a")
    stir(model)
    model.merge_adapter()
    merged = words.emb.weight.detach().clone()
    model.add_adapter("b", PlainConfig(target_modules=["lin"], trainable_token_indices=[5, 2]))
    same(words.emb.auxiliary["b"].trainable_tokens_delta, table[[5, 2]])
    same(words.emb.weight, merged)


def test_tied_rows_have_the_dtype_of_the_rows():
    layer = nn.Embedding(11, 6)
    from peftcore import base_layers

    base, head = base_layers.adapt(layer), base_layers.adapt(nn.Linear(6, 11))
    rows = TrainedTokens(base, [1, 2]).double()
    assert rows.tied(head, None).dtype == torch.float64
    assert isinstance(Single(layer)(IDS), torch.Tensor)
