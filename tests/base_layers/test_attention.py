"""torch's own attention: every way to call it, and owners that read weights and never call."""

import itertools

import pytest
import torch
from torch import nn

from peftcore.base_layers import adapt, reads_weights

DIM, HEADS, LENGTH, BATCH = 8, 2, 5, 3


def attention(**kwargs):
    layer = nn.MultiheadAttention(DIM, HEADS, **kwargs)
    for bias in (layer.in_proj_bias, layer.out_proj.bias):
        if bias is not None:
            nn.init.normal_(bias)
    return layer.requires_grad_(False)


def with_delta(layer, delta):
    """The layer as it is with a delta written into its weight."""
    written = nn.MultiheadAttention(
        DIM,
        HEADS,
        bias=layer.in_proj_bias is not None,
        add_bias_kv=layer.bias_k is not None,
        add_zero_attn=layer.add_zero_attn,
        batch_first=layer.batch_first,
    )
    written.to(delta.dtype).load_state_dict({**layer.state_dict(), "in_proj_weight": layer.in_proj_weight + delta})
    return written.requires_grad_(False).train(layer.training)


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "bias of keys and values": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
}
CALLS = {
    "weights": {},
    "no weights": {"need_weights": False},
    "weights by head": {"average_attn_weights": False},
    "attention mask": {"attn_mask": torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)},
    "causal": {"attn_mask": torch.triu(torch.full((LENGTH, LENGTH), float("-inf")), 1), "is_causal": True},
    "padding mask": {"key_padding_mask": torch.arange(LENGTH).expand(BATCH, -1) >= torch.tensor([[5], [3], [1]])},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("batch_first", "training", "grad"), list(itertools.product([True, False], repeat=3)))
def test_applying_a_weight_is_the_layer_that_has_it(options, call, batch_first, training, grad):
    if "add_bias_kv" in options and call.get("is_causal"):
        call = {**call, "is_causal": False}  # torch takes no causal hint for longer keys
    layer = attention(batch_first=batch_first, **options).train(training)
    base, x = adapt(layer), torch.randn(*((BATCH, LENGTH) if batch_first else (LENGTH, BATCH)), DIM)
    delta = torch.randn(base.weight_shape, requires_grad=True)
    others = (x, x.flip(0), x.flip(1))
    with torch.set_grad_enabled(grad):
        for inputs in ((x, x, x), others):
            outputs = base.apply(base.weight() + delta, *inputs, **call)
            expected = with_delta(layer, delta.detach())(*inputs, **call)
            assert torch.allclose(outputs[0], expected[0], atol=1e-5)
            assert (outputs[1] is None) == (expected[1] is None)
            assert outputs[1] is None or torch.allclose(outputs[1], expected[1], atol=1e-5)
    assert outputs[0].requires_grad is grad
    assert (base.batch_dim == 0) is batch_first


def test_unbatched_and_by_keyword():
    layer = attention()
    base, x = adapt(layer), torch.randn(LENGTH, DIM)
    output, weights = base.apply(base.weight(), query=x, key=x, value=x)
    expected = layer(x, x, x)
    assert torch.allclose(output, expected[0], atol=1e-6)
    assert torch.allclose(weights, expected[1], atol=1e-6)


def test_gradients_are_those_of_a_trained_layer():
    layer = attention().double()
    base, x = adapt(layer), torch.randn(LENGTH, BATCH, DIM, dtype=torch.float64)
    delta = torch.randn(base.weight_shape, dtype=torch.float64, requires_grad=True)
    base.apply(base.weight() + delta, x, x, x)[0].square().sum().backward()
    trained = with_delta(layer, delta.detach()).requires_grad_()
    trained(x, x, x)[0].square().sum().backward()
    assert torch.allclose(delta.grad, trained.in_proj_weight.grad)


def test_a_wider_weight_is_brought_to_the_layers_dtype():
    layer = attention(batch_first=True).to(torch.bfloat16)
    base, x = adapt(layer), torch.randn(BATCH, LENGTH, DIM, dtype=torch.bfloat16)
    output, _ = base.apply(base.weight().float(), x, x, x)
    assert torch.equal(output, layer(x, x, x)[0])


def test_the_layer_is_as_before_even_after_an_error():
    layer = attention()
    base, weight = adapt(layer), layer.in_proj_weight
    with pytest.raises(AssertionError):
        base.apply(base.weight() + 1, *[torch.randn(LENGTH, BATCH, DIM + 1)] * 3)
    assert layer.in_proj_weight is weight
    assert isinstance(layer.in_proj_weight, nn.Parameter)


def test_the_output_projection_comes_along():
    layer = attention()
    ((attribute, inner),) = adapt(layer).inner_layers()
    assert (attribute, inner.layer, inner.kind) == ("out_proj", layer.out_proj, "linear")
    assert inner.read_by_owner
    assert adapt(layer).read_by_owner
    assert not adapt(nn.Linear(2, 2)).read_by_owner
    assert adapt(nn.Linear(2, 2)).inner_layers() == ()


def test_an_output_projection_that_is_adapted_already_is_seen_frozen(folded):
    layer = attention()
    frozen = layer.out_proj
    layer.out_proj = folded(adapt(layer).inner_layers()[0][1])
    ((_, inner),) = adapt(layer).inner_layers()
    assert inner.layer is frozen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_both_projections_together(folded, training, batch_first):
    layer = attention(batch_first=batch_first).train(training)
    base, x = adapt(layer), torch.randn(BATCH, LENGTH, DIM)
    inner = folded(base.inner_layers()[0][1])
    layer.out_proj = inner
    outer = folded(base)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output, _ = outer(x, x, x)
        written = attention(batch_first=batch_first).train(training)
        written.load_state_dict(
            {
                "in_proj_weight": outer.weight_in_effect(),
                "in_proj_bias": layer.in_proj_bias,
                "out_proj.weight": inner.weight_in_effect(),
                "out_proj.bias": inner.base_layer.bias,
            }
        )
        assert torch.allclose(output, written(x, x, x)[0], atol=1e-5)
    outer(x, x, x)[0].square().sum().backward()
    assert outer.delta.grad.abs().sum() > 0
    assert inner.delta.grad.abs().sum() > 0


# ----------------------------------------------------------------------- owners that read their children's weights

READ_IN_ENCODER_LAYERS = ("self_attn", "self_attn.out_proj", "linear1", "linear2")


class ReadInstead(nn.Module):
    """Stands for a module and complains when it is called."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.calls = 0
        self.read = set()

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.layer(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            self.read.add(name)
            return getattr(self.layer, name)


def test_which_modules_read_is_what_torch_does():
    """Facts about torch: on the fast path of an encoder layer no child is called; elsewhere, only attention reads."""
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, dropout=0, batch_first=True)
    children = [name for name, _ in layer.named_children() if name in READ_IN_ENCODER_LAYERS]
    for name in children:
        setattr(layer, name, ReadInstead(getattr(layer, name)))
    layer.self_attn.layer.out_proj = ReadInstead(layer.self_attn.layer.out_proj)
    x = torch.randn(BATCH, LENGTH, DIM)
    layer.eval().requires_grad_(False)(x)
    standing = [getattr(layer, name) for name in children] + [layer.self_attn.layer.out_proj]
    assert [child.calls for child in standing] == [0] * 4
    assert all(child.read >= {"weight", "bias"} or "in_proj_weight" in child.read for child in standing)
    layer.train()(x)
    assert [child.calls for child in standing] == [1, 1, 1, 0]
    assert reads_weights(nn.TransformerEncoderLayer(DIM, HEADS))
    assert reads_weights(nn.MultiheadAttention(DIM, HEADS))
    assert not any(map(reads_weights, (nn.TransformerDecoderLayer(DIM, HEADS), nn.Sequential(), nn.Linear(2, 2))))


def adapted_encoder_layer(folded, names, **options):
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 16, dropout=0, batch_first=True, **options).requires_grad_(False)
    # The attention after what is in it: it hides its children.
    for name in sorted(names, key=len, reverse=True):
        parent_name, _, attribute = name.rpartition(".")
        parent = layer.get_submodule(parent_name)
        base = adapt(getattr(parent, attribute))
        base.read_by_owner = base.read_by_owner or reads_weights(parent)
        setattr(parent, attribute, folded(base))
    return layer


@pytest.mark.parametrize("names", [(name,) for name in READ_IN_ENCODER_LAYERS] + [READ_IN_ENCODER_LAYERS], ids=str)
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_fast_path_of_an_encoder_layer_sees_the_adapters(folded, names, norm_first):
    layer = adapted_encoder_layer(folded, names, norm_first=norm_first)
    x, padding = torch.randn(BATCH, LENGTH, DIM), CALLS["padding mask"]["key_padding_mask"]
    slow = layer.train()(x, src_key_padding_mask=padding)
    layer.eval()
    in_eval = layer(x, src_key_padding_mask=padding)
    with torch.no_grad():
        fast = layer(x, src_key_padding_mask=padding)
    kept = ~padding
    assert torch.allclose(in_eval[kept], slow[kept], atol=1e-5)
    assert torch.allclose(fast[kept], slow[kept], atol=1e-5)


def test_a_whole_encoder_sees_the_adapters(folded):
    layers = [adapted_encoder_layer(folded, READ_IN_ENCODER_LAYERS) for _ in range(2)]
    encoder = nn.TransformerEncoder(layers[0], 2)
    encoder.layers = nn.ModuleList(layers)
    x, padding = torch.randn(BATCH, LENGTH, DIM), CALLS["padding mask"]["key_padding_mask"]
    slow = encoder.train()(x, src_key_padding_mask=padding)
    with torch.no_grad():
        fast = encoder.eval()(x, src_key_padding_mask=padding)
    assert torch.allclose(fast[~padding], slow[~padding], atol=1e-5)
