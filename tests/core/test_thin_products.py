"""A frozen linear layer and a thin delta in one step: the same as step by step, in every respect but time."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftcore import (
    LayerConfig,
    PeftMethod,
    get_peft_model,
    option,
    register_peft_method,
    unregister_peft_method,
)
from peftcore.adapters import thin_products
from peftcore.adapters.low_rank import LowRankDelta

from .models import Single


class ThinConfig(LayerConfig, method="thin"):
    r: int = option(3, "Rank.", at_least=1)
    dropout: float = option(0.0, "Share of the input that is dropped in training.", at_least=0.0, below=1.0)


class ThinAdapter(LowRankDelta):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        rows, columns = base.matrix_shape
        self.thin_A = nn.Parameter(torch.randn(config.r, columns))
        self.thin_B = nn.Parameter(torch.randn(rows, config.r))
        self.dropout = nn.Dropout(config.dropout)

    def factors(self):
        return 0.5 * self.thin_A, self.thin_B

    def entering(self, x):
        return self.dropout(x)


@pytest.fixture(autouse=True, scope="module")
def thin_method():
    register_peft_method(PeftMethod(name="thin", config_cls=ThinConfig, adapter_cls=ThinAdapter, prefix="thin_"))
    yield
    unregister_peft_method("thin")


def adapted(layer=None, dtype=torch.float32, adapter_dtype=None, **options):
    torch.manual_seed(0)
    model = get_peft_model(Single(layer or nn.Linear(6, 5)).to(dtype), ThinConfig(target_modules=["layer"], **options))
    layer = model.base_model.model.layer
    layer.adapters.to(adapter_dtype or dtype)
    return layer


def step_by_step(layer):
    """The same layer, watched: a hook on the frozen layer would see its output, so nothing may be added in place."""
    watched = copy.deepcopy(layer)
    watched.base_layer.register_forward_hook(lambda *_: None)
    return watched


def gradients(layer, x, seed=0):
    torch.manual_seed(seed)
    x = x.detach().clone().requires_grad_()
    output = layer(x)
    wanted = [x, *(weight for weight in layer.parameters() if weight.requires_grad)]
    return output, torch.autograd.grad(output, wanted, torch.linspace(-1, 1, output.numel()).reshape(output.shape))


def tolerance(dtype):
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.02}


def count_runs(monkeypatch):
    runs = []
    one_step = thin_products.run_with_thin_delta

    def counted(*args):
        result = one_step(*args)
        runs.append(result is not None)
        return result

    monkeypatch.setattr("peftcore.composition.run_with_thin_delta", counted)
    return runs


DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


@pytest.mark.parametrize(("dtype", "adapter_dtype"), DTYPES, ids=["fp32", "bf16", "mixed"])
@pytest.mark.parametrize("shape", [(2, 6), (4, 3, 6), (7, 3, 6), (2, 9, 2, 6), (100, 6), (0, 6), (2, 0, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_steps(dtype, adapter_dtype, shape, bias, monkeypatch):
    layer = adapted(nn.Linear(6, 5, bias=bias), dtype, adapter_dtype)
    watched = step_by_step(layer)
    x = torch.randn(shape, dtype=dtype)
    runs = count_runs(monkeypatch)
    ours, theirs = gradients(layer, x), gradients(watched, x)
    assert runs == [True, False]
    torch.testing.assert_close(ours, theirs, **tolerance(dtype))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), watched(x), **tolerance(dtype))


def test_many_tokens_without_gradients_are_multiplied_by_the_sum():
    layer = adapted(nn.Linear(6, 5))
    x = torch.randn(40, 6)
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), step_by_step(layer)(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.base_layer.weight, before)


@given(st.sets(st.sampled_from(["x", "thin_A", "thin_B"])), st.sampled_from([3, 40]))
def test_each_gradient_is_computed_where_it_is_needed(needed, tokens):
    layer = adapted()
    for name in ("thin_A", "thin_B"):
        getattr(layer.adapters["default"], name).requires_grad_(name in needed)
    x = torch.randn(tokens, 6, requires_grad="x" in needed)
    wanted = [x if name == "x" else getattr(layer.adapters["default"], name) for name in sorted(needed)]
    outputs = [layer(x), step_by_step(layer)(x)]
    assert outputs[0].requires_grad == bool(needed)
    torch.testing.assert_close(outputs[0], outputs[1])
    if needed:
        watched = step_by_step(layer)
        theirs = [x if name == "x" else getattr(watched.adapters["default"], name) for name in sorted(needed)]
        torch.testing.assert_close(
            torch.autograd.grad(outputs[0].square().sum(), wanted),
            torch.autograd.grad(watched(x).square().sum(), theirs),
        )


@pytest.mark.parametrize("tokens", [4, 20])
def test_gradients_are_right_and_can_be_differentiated_again(tokens):
    layer = adapted(dtype=torch.float64)
    part = layer.adapters["default"]

    def run(x, a, b):
        return torch.func.functional_call(layer, {"adapters.default.thin_A": a, "adapters.default.thin_B": b}, (x,))

    given_ = [torch.randn(tokens, 6, dtype=torch.float64).requires_grad_(), part.thin_A.detach(), part.thin_B.detach()]
    given_ = [tensor.clone().requires_grad_() for tensor in given_]
    assert torch.autograd.gradcheck(run, given_)
    assert torch.autograd.gradgradcheck(run, given_)


@pytest.mark.parametrize(("dtype", "adapter_dtype"), DTYPES, ids=["fp32", "bf16", "mixed"])
def test_dropout_drops_what_it_would_step_by_step(dtype, adapter_dtype):
    layer = adapted(dtype=dtype, adapter_dtype=adapter_dtype, dropout=0.5)
    layer.train()
    x = torch.randn(30, 6, dtype=dtype)
    torch.testing.assert_close(gradients(layer, x), gradients(step_by_step(layer), x), **tolerance(dtype))
    torch.manual_seed(1)
    first = layer(x)
    assert not torch.equal(first, layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_computes_in_its_own_dtype(adapter_dtype, monkeypatch):
    layer = adapted(adapter_dtype=adapter_dtype)
    x = torch.randn(20, 6)
    runs = count_runs(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients(layer, x), gradients(step_by_step(layer), x)
    assert runs[0] and ours[0].dtype == torch.bfloat16
    assert [g.dtype for g in ours[1]] == [g.dtype for g in theirs[1]]
    torch.testing.assert_close(ours, theirs, **tolerance(torch.bfloat16))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_runs_it_again(reentrant):
    layer = adapted(dropout=0.3)
    layer.train()
    x = torch.randn(20, 6)

    def through(y):
        return checkpoint(layer, y, use_reentrant=reentrant)

    def run(layer_or_checkpoint):
        torch.manual_seed(3)
        y = x.clone().requires_grad_()
        layer.zero_grad()
        layer_or_checkpoint(y).square().sum().backward()
        return [y.grad, *(w.grad for w in layer.parameters() if w.requires_grad)]

    torch.testing.assert_close(run(through), run(layer))


def test_a_hook_on_the_frozen_layer_sees_the_frozen_output():
    layer, seen = adapted(), []
    x = torch.randn(3, 6)
    layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(output))
    layer(x)
    torch.testing.assert_close(seen[0], nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias))


def test_a_hook_on_every_module_sees_the_frozen_layer():
    layer, seen = adapted(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        layer(torch.randn(3, 6))
    finally:
        handle.remove()
    assert layer.base_layer in seen


def test_a_forward_that_is_not_the_class_s_own_is_called():
    class Louder(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(3, 6)
    for layer in (adapted(Louder(6, 5)), adapted()):
        base = layer.base_layer
        if type(base) is nn.Linear:
            base.forward = lambda x, base=base: 2 * nn.functional.linear(x, base.weight, base.bias)
        part = layer.adapters["default"]
        expected = 2 * nn.functional.linear(x, base.weight, base.bias) + part.delta_forward(x)
        torch.testing.assert_close(layer(x), expected)


def test_a_frozen_weight_that_is_made_to_train_gets_its_gradient():
    layer = adapted()
    layer.base_layer.weight.requires_grad_()
    layer.base_layer.bias.requires_grad_()
    x = torch.randn(3, 6)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.base_layer.weight.grad, x.sum(0).expand(5, 6))
    torch.testing.assert_close(layer.base_layer.bias.grad, torch.full((5,), 3.0))


def test_the_input_stays_and_writing_to_it_before_backward_is_noticed():
    layer = adapted()
    x = torch.randn(20, 6)
    before = x.clone()
    output = layer(x)
    assert torch.equal(x, before)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_transforms_dual_numbers_and_tracing_go_step_by_step():
    layer = adapted()
    x, tangent = torch.randn(4, 6), torch.randn(4, 6)
    expected = layer(x)
    torch.testing.assert_close(torch.vmap(layer)(x), expected)
    jacobian = layer.base_layer.weight + layer.adapters["default"].delta_weight()
    torch.testing.assert_close(torch.func.jacrev(layer)(x[0]), jacobian)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (tangent,))[1], tangent @ jacobian.T)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent @ jacobian.T)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(layer, x)(x), expected, check_stride=False)


def test_it_compiles_whole():
    layer = adapted()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6)
    torch.testing.assert_close(gradients(compiled, x), gradients(layer, x))


def test_conv1d_of_transformers_too(monkeypatch):
    from transformers.pytorch_utils import Conv1D

    layer = adapted(Conv1D(5, 6))
    x = torch.randn(2, 3, 6)
    runs = count_runs(monkeypatch)
    torch.testing.assert_close(gradients(layer, x), gradients(step_by_step(layer), x))
    assert runs == [True, False]


def test_views_of_larger_tensors_and_repeated_rows():
    layer = adapted()
    watched = step_by_step(layer)
    for x in (torch.randn(6, 28).t(), torch.randn(8, 1, 6).expand(8, 3, 6), torch.randn(4, 12)[:, ::2]):
        torch.testing.assert_close(gradients(layer, x), gradients(watched, x))


def test_only_the_input_and_the_features_are_kept():
    layer = adapted(nn.Linear(64, 48), r=2)
    x = torch.randn(32, 64, requires_grad=True)
    kept = []
    parameters = {weight.data_ptr() for weight in layer.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters | {x.data_ptr()}:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    # What A is computed from is kept as well.
    assert sorted(tensor.numel() for tensor in kept if tensor.dim()) == sorted([32 * 2, 2 * 64])


@pytest.mark.parametrize(("dtype", "adapter_dtype"), DTYPES, ids=["fp32", "bf16", "mixed"])
def test_a_dropout_that_was_put_into_training_alone_drops(dtype, adapter_dtype):
    layer = adapted(dtype=dtype, adapter_dtype=adapter_dtype, dropout=0.5).eval()
    x = torch.randn(30, 6, dtype=dtype)
    assert torch.equal(layer(x), layer(x))
    layer.adapters["default"].dropout.train()
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(("dtype", "adapter_dtype"), DTYPES, ids=["fp32", "bf16", "mixed"])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 20, 6)], ids=str)
def test_what_follows_may_write_to_the_output(dtype, adapter_dtype, shape):
    layer = adapted(nn.Linear(6, 5), dtype, adapter_dtype)
    x = torch.randn(shape, dtype=dtype)

    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = layer(ours).relu_(), step_by_step(layer)(theirs).relu()
    torch.testing.assert_close(output, expected, **tolerance(dtype))
    output.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance(dtype))
