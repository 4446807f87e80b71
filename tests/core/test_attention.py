"""torch's own attention and encoder layers, which read the weights of their parts and never call them."""

import pytest
import torch
from torch import nn

from peftcore import LayerConfig, get_peft_model, register_peft_method, unregister_peft_method
from peftcore.adapters.transform import WeightTransform

from .methods import PlainConfig, ScaledConfig, ShiftedConfig, TurnedConfig
from .models import Single, anatomy, assert_as_before, differs, same, stir, without_gradient


class Attends(nn.Module):
    def __init__(self, batch_first=True, keywords=False):
        super().__init__()
        self.att = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.keywords = keywords

    def forward(self, x):
        if self.keywords:
            return self.att(query=x, key=x, value=x, need_weights=False)[0]
        return self.att(x, x, x)[0]


X = torch.linspace(-2, 2, 4 * 3 * 8).reshape(4, 3, 8).sin()


def reference(net, x):
    """The attention with both weights that act, written out by torch's own layer."""
    layer = net.att
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    frozen = {key.replace("base_layer.", ""): value for key, value in layer.base_layer.state_dict().items()}
    plain.load_state_dict({key: value for key, value in frozen.items() if "plain" not in key})
    with torch.no_grad():
        plain.in_proj_weight.add_(layer.adapters["default"].delta_weight())
        plain.out_proj.weight.add_(layer.base_layer.out_proj.adapters["default"].delta_weight())
    return plain(x, x, x)[0]


@pytest.mark.parametrize("keywords", [False, True], ids=["", "keywords"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", ""])
def test_both_projections_act(training, gradients, keywords):
    net = Attends(keywords=keywords).train(training)
    before, frozen = anatomy(net), net(X)
    model = get_peft_model(net, PlainConfig(target_modules=["att"]))
    with torch.set_grad_enabled(gradients):
        expected = model(X)
        same(expected, reference(net, X))
        with model.disable_adapter():
            same(model(X), frozen)
        same(model(X, adapter_names=["default", "__base__"] * 2)[:2], torch.stack([expected[0], frozen[1]]))
        model.merge_adapter()
        same(model(X), expected)
        model.unmerge_adapter()
    model(X).square().sum().backward()
    assert without_gradient(model) == []
    model.delete_adapter("default")
    assert_as_before(net, before, exact=False)


class Turned(nn.Module):
    """An attention whose batch lies second, in a model whose batch lies first."""

    def __init__(self):
        super().__init__()
        self.att = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        x = x.transpose(0, 1)
        return self.att(x, x, x)[0].transpose(0, 1)


@pytest.mark.parametrize("net", [Attends(), Turned()], ids=["batch first", "batch second"])
def test_rows_of_a_batch_wherever_it_lies(net):
    model = get_peft_model(net, PlainConfig(target_modules=["att"]), "a")
    model.add_adapter("b", ScaledConfig(target_modules=["att"]))
    a = model(X)
    model.set_adapter("b")
    b = model(X)
    same(model(X, adapter_names=["b", "a", "a", "b"]), torch.stack([b[0], a[1], a[2], b[3]]))


def test_sums_that_an_attention_reads_may_be_merged_in_any_order():
    model = get_peft_model(Attends(), PlainConfig(target_modules=["out_proj"]), "a")
    model.add_adapter("b", ScaledConfig(target_modules=["out_proj"]))
    model.set_adapter(["a", "b"])
    expected = model(X)
    for name in ("b", "a"):
        model.merge_adapter([name])
        same(model(X), expected)


ENCODER_PARTS = ["self_attn", "linear1", "linear2"]
CONFIGS = {
    "deltas": PlainConfig(target_modules=ENCODER_PARTS),
    "dependent deltas": ScaledConfig(target_modules=ENCODER_PARTS),
    "transforms": TurnedConfig(target_modules=["linear1", "linear2"]),
    "deltas with biases": ShiftedConfig(target_modules=["linear1", "linear2"]),
    "biases of adapted layers": PlainConfig(target_modules=["linear1", "linear2"], bias="plain_only"),
    "all biases": PlainConfig(target_modules=["linear1"], bias="all"),
    "a saved norm": PlainConfig(target_modules=["linear1"], modules_to_save=["norm1"]),
    "a saved linear layer": PlainConfig(target_modules=["linear1"], modules_to_save=["linear2"]),
    "a saved attention": PlainConfig(target_modules=["linear1"], modules_to_save=["self_attn"]),
}


def encoder(**options):
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_acts_alike_on_its_fast_path(config, norm_first):
    net = Single(encoder(norm_first=norm_first)).eval()
    frozen = net(X)
    model = stir(get_peft_model(net, config))
    expected = model.train()(X)
    differs(expected, frozen)
    model.eval()
    same(model(X), expected)
    with torch.no_grad():
        same(model(X), expected)
        with model.disable_adapter():
            same(model(X), frozen)
        model.merge_adapter()
        same(model(X), expected)
        same(model.merge_and_unload()(X), expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", ""])
def test_an_encoder_in_a_mixed_batch(training, gradients):
    net = Single(nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False)).train(training)
    model = get_peft_model(net, PlainConfig(target_modules=ENCODER_PARTS), "a")
    model.add_adapter("b", TurnedConfig(target_modules=["linear2"]))
    with torch.set_grad_enabled(gradients):
        a = model(X)
        model.set_adapter("b")
        b = model(X)
        with model.disable_adapter():
            frozen = model(X)
        same(model(X, adapter_names=["b", "a", "__base__", "a"]), torch.stack([b[0], a[1], frozen[2], a[3]]))


class DroppedConfig(LayerConfig, method="dropped"):
    pass


class DroppedAdapter(WeightTransform):
    """A weight scaled by a number, of which training leaves rows out."""

    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        self.dropped_s = nn.Parameter(torch.tensor(2.0))

    def transform(self, weight):
        return self.dropped_s * weight

    def transform_in_call(self, weight):
        if not self.training:
            return self.transform(weight)
        kept = torch.rand(len(weight), 1) > 0.5
        return torch.where(kept, self.transform(weight), weight)


@pytest.fixture
def dropped():
    register_peft_method(name="dropped", config_cls=DroppedConfig, adapter_cls=DroppedAdapter)
    yield DroppedConfig(target_modules=["out_proj"])
    unregister_peft_method("dropped")


@pytest.mark.parametrize("rows", [None, ["default"] * 4], ids=["", "given to every row"])
def test_a_weight_that_is_read_drops_out_as_in_a_call(dropped, rows):
    model = get_peft_model(Attends(), dropped).train()
    projection = model.get_base_model().att.out_proj
    frozen = projection.base_layer.weight
    seen = []
    for seed in range(6):
        torch.manual_seed(seed)
        output = model(X) if rows is None else model(X, adapter_names=rows)
        torch.manual_seed(seed)
        factors = torch.where(torch.rand(8, 1) > 0.5, 2.0, 1.0)
        same(output, nn.functional.linear(features(model), factors * frozen, projection.base_layer.bias))
        seen.append(output)
    differs(seen[0], seen[1])
    model.eval()
    same(model(X), nn.functional.linear(features(model), 2 * frozen, projection.base_layer.bias))


def features(model):
    """What goes into the output projection: the attention's output when that passes everything on."""
    layer = model.get_base_model().att
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        plain.in_proj_weight.copy_(layer.in_proj_weight)
        plain.in_proj_bias.copy_(layer.in_proj_bias)
        plain.out_proj.weight.copy_(torch.eye(8))
        plain.out_proj.bias.zero_()
    return plain(X, X, X)[0]
