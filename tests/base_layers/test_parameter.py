"""Bare parameters of modules, stacked experts among them.

How HF PEFT lays out ``target_parameters`` (the last tests of this file compare live):

* A stacked parameter ``[E, a, b]`` maps ``b`` inputs to ``a`` outputs, unless its module has ``is_transposed = True``;
  then ``a`` are the inputs. transformers sets it: True in GPT-OSS, False in Mixtral and Qwen3-MoE.
  For a matrix ``[a, b]`` the flag has no effect. One dimension, or more than three, are refused.
* The factors are flat: A is ``[r · E, in]``, with the experts outside (``A.view(E, r, in)``);
  B is ``[out, r · E]``, with the experts *inside* (``B.view(out, r, E)``).
  The delta of expert e is scale · B[:, :, e] @ A[e].
* Two parameters of one module nest in the order in which the module declares them, not in which the config names them:
  the first declared is innermost. The outermost one's keys start with the module's path, each one further in adds
  ``base_layer.``.
* A layer that is a target as a module can't have a parameter targeted as well.
"""

import pytest
import torch
from torch import nn

from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import TargetError, UnsupportedLayerError

EXPERTS, HIDDEN, INNER = 3, 4, 6


class Experts(nn.Module):
    """A mixture of all experts: up and down are stacked, and a plain matrix mixes the input."""

    def __init__(self, is_transposed=False):
        super().__init__()
        self.is_transposed = is_transposed
        shapes = (HIDDEN, INNER), (INNER, HIDDEN)
        up, down = shapes if is_transposed else shapes[::-1]
        self.up = nn.Parameter(torch.randn(EXPERTS, *up))
        self.down = nn.Parameter(torch.randn(EXPERTS, *down))
        self.mix = nn.Parameter(torch.randn(HIDDEN, HIDDEN))
        self.scale = nn.Parameter(torch.ones(HIDDEN))
        self.requires_grad_(False)

    def forward(self, x, *, power=1):
        up, down = (w if self.is_transposed else w.transpose(1, 2) for w in (self.up, self.down))
        return ((x @ self.mix.T)[None] @ up).relu().pow(power).matmul(down).sum(0) * self.scale


stored_either_way = pytest.mark.parametrize("is_transposed", [False, True])


@stored_either_way
@pytest.mark.parametrize("name", ["up", "down", "mix"])
def test_applying_a_weight_is_the_module_that_has_it(name, is_transposed):
    owner, x = Experts(is_transposed), torch.randn(5, HIDDEN)
    base = ParameterLayer(owner, name)
    delta = torch.randn(base.weight_shape, requires_grad=True)
    output = base.apply(base.weight() + delta, x, power=2)
    output.square().sum().backward()
    assert delta.grad.abs().sum() > 0
    base.add_(delta)
    assert torch.allclose(owner(x, power=2), output, atol=1e-4)


@stored_either_way
def test_sizes(is_transposed):
    owner = Experts(is_transposed)
    up, mix = ParameterLayer(owner, "up"), ParameterLayer(owner, "mix")
    assert (up.kind, up.in_features, up.out_features, up.stack) == ("parameter", HIDDEN, INNER, EXPERTS)
    assert up.weight_shape == up.weight().shape == (EXPERTS, INNER, HIDDEN)
    assert up.matrix_shape == (INNER, HIDDEN)
    assert (mix.stack, mix.matrix_shape, mix.weight_shape) == (1, (HIDDEN, HIDDEN), (HIDDEN, HIDDEN))
    assert not up.additive
    assert up.weight_name == up.parameter_name == "up"
    single = nn.Module()
    single.w = nn.Parameter(torch.zeros(1, 2, 5))
    assert ParameterLayer(single, "w").weight_shape == (1, 2, 5)
    assert ParameterLayer(single, "w").matrix_shape == (2, 5)


def test_a_matrix_has_one_orientation():
    """See the facts above."""
    owner = nn.Module()
    owner.is_transposed = True
    owner.w = nn.Parameter(torch.randn(2, 5))
    assert ParameterLayer(owner, "w").matrix_shape == (2, 5)


@stored_either_way
@pytest.mark.parametrize("names", [("up", "down"), ("down", "up"), ("up", "down", "mix")], ids=str)
def test_several_parameters_of_one_module(folded, names, is_transposed):
    owner, x = Experts(is_transposed), torch.randn(5, HIDDEN)
    standing, layers = owner, []
    for name in names:
        standing = folded(ParameterLayer(standing, name))
        layers.append(standing)
    output = standing(x, power=2)
    output.square().sum().backward()
    gradients = [layer.delta.grad for layer in layers]
    # The same, with the deltas written into the parameters and trained there.
    for layer in layers:
        layer.base.add_(layer.delta)
    assert torch.allclose(owner(x, power=2), output, rtol=1e-4)
    owner.requires_grad_()
    owner(x, power=2).square().sum().backward()
    for layer, gradient in zip(layers, gradients, strict=True):
        stored = getattr(owner, layer.base.weight_name).grad
        expected = stored.transpose(-1, -2) if layer.base.transposed else stored
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_a_layer_may_be_adapted_within(folded):
    """A view planned before its module is wrapped finds the parameter afterwards."""
    owner = Experts()
    base = ParameterLayer(owner, "down")
    base.layer = folded(ParameterLayer(owner, "up"))
    assert base.stored is owner.down
    x = torch.randn(2, HIDDEN)
    assert torch.equal(base.apply(base.weight(), x), base.layer(x))


def test_the_weight_of_a_layer_as_a_parameter(folded):
    layer, x = nn.Linear(3, 5), torch.randn(2, 3)
    base = ParameterLayer(layer, "weight")
    assert base.bias is None
    assert torch.equal(base.apply(base.weight(), x), layer(x))
    standing = folded(base)
    around = adapt(layer)
    assert torch.allclose(standing(x), around.add_bias(around.apply(layer.weight + standing.delta, x), layer.bias))


def test_the_module_is_as_before_even_after_an_error():
    owner = Experts()
    base, stored = ParameterLayer(owner, "up"), owner.up
    with pytest.raises(RuntimeError):
        base.apply(base.weight(), torch.randn(2, HIDDEN + 1))
    assert owner.up is stored


def test_half_precision():
    owner, x = Experts().to(torch.bfloat16), torch.randn(2, HIDDEN, dtype=torch.bfloat16)
    base = ParameterLayer(owner, "up")
    output = base.apply(base.weight().float(), x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, owner(x))


def test_a_parameter_that_is_not_there(folded):
    owner = Experts()
    for holder in (owner, folded(ParameterLayer(owner, "up"))):
        with pytest.raises(TargetError, match="Experts has no parameter 'upp'; it holds up, down, mix, scale"):
            ParameterLayer(holder, "upp")
    with pytest.raises(TargetError, match="holds none"):
        ParameterLayer(nn.Identity(), "weight")
    with pytest.raises(TargetError, match="no parameter 'is_transposed'"):
        ParameterLayer(owner, "is_transposed")


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(1, 2, 3, 4), torch.ones(2, 2, dtype=torch.int64)], ids=str)
def test_a_parameter_that_is_no_matrix(value):
    owner = nn.Module()
    owner.w = nn.Parameter(value, requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match="Parameter 'w' of Module can't be adapted"):
        ParameterLayer(owner, "w")


# ---------------------------------------------------------------------------------------- the same in HF PEFT


class Model(nn.Module):
    def __init__(self, is_transposed=False):
        super().__init__()
        self.experts = Experts(is_transposed)

    def forward(self, x):
        return self.experts(x)


def adapted_elsewhere(model, names):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_parameters=names, target_modules=[], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    return adapted, peft.get_peft_model_state_dict(adapted)


def expert_deltas(a, b, stack, scale):
    """The deltas ``[E, out, in]`` of flat factors, as the facts above say."""
    rank = a.shape[0] // stack
    return scale * torch.einsum("ore,eri->eoi", b.view(-1, rank, stack), a.view(stack, rank, -1))


@stored_either_way
@pytest.mark.parametrize("named", [("up", "down"), ("down", "up")], ids=str)
def test_hf_peft_means_the_same_by_a_parameter(named, is_transposed):
    model, x = Model(is_transposed), torch.randn(5, HIDDEN)
    ours = Experts(is_transposed)
    ours.load_state_dict(model.experts.state_dict())
    adapted, state = adapted_elsewhere(model, [f"experts.{name}" for name in named])
    # Declared first, nested deepest.
    for name, inside in (("up", "base_layer."), ("down", "")):
        base = ParameterLayer(ours, name)
        a, b = (state[f"base_model.model.experts.{inside}lora_{factor}.weight"] for factor in "AB")
        assert a.shape == (2 * base.stack, base.in_features)
        assert b.shape == (base.out_features, 2 * base.stack)
        base.add_(expert_deltas(a, b, base.stack, scale=3))
    assert len(state) == 4
    assert torch.allclose(adapted(x), ours(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["Mixtral", "GptOss", "Qwen3Moe"])
def test_hf_peft_means_the_same_by_the_experts_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"num_local_experts": EXPERTS, "num_experts": EXPERTS, "num_experts_per_tok": 2, "vocab_size": 11}
    config = getattr(transformers, f"{name}Config")(
        **sizes,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["full_attention"],
    )
    make = getattr(transformers, f"{name}ForCausalLM")
    model, ours = make(config), make(config)
    ours.load_state_dict(model.state_dict())
    adapted, state = adapted_elsewhere(model, ["experts.gate_up_proj", "experts.down_proj"])
    path = "model.layers.0.mlp.experts"
    for parameter, inside in (("gate_up_proj", "base_layer."), ("down_proj", "")):
        base = ParameterLayer(ours.get_submodule(path), parameter)
        a, b = (state[f"base_model.model.{path}.{inside}lora_{factor}.weight"] for factor in "AB")
        base.add_(expert_deltas(a, b, base.stack, scale=3))
    ids = torch.arange(6)[None]
    assert torch.allclose(adapted(ids).logits, ours(ids).logits, atol=1e-4)
    # And the weight is applied to the module as well as it is written into it.
    base, hidden = ParameterLayer(ours.get_submodule(path), "gate_up_proj"), {}
    ours.get_submodule(path).register_forward_pre_hook(
        lambda _, args, kwargs: hidden.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    ours(ids)
    delta = torch.randn(base.weight_shape)
    before = base.apply(base.weight() + delta, *hidden["args"], **hidden["kwargs"])
    base.add_(delta)
    assert torch.allclose(base.forward(*hidden["args"], **hidden["kwargs"]), before, atol=1e-5)
