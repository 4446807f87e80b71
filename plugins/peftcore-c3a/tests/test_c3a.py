"""The mathematics, and what is refused."""

import pytest
import torch
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError, UnsupportedLayerError
from peftcore.registry import registry
from peftcore_c3a import C3AAdapter, C3AConfig


def make(base, **options):
    torch.manual_seed(0)
    base = adapt(base) if isinstance(base, nn.Module) else base
    return C3AAdapter(base, C3AConfig(init_weights="gaussian", **options))


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


def circulant(kernel):
    """Return the matrix whose rows are the kernel, each shifted by one more to the right."""
    return torch.stack([kernel.roll(row) for row in range(len(kernel))])


def block_matrix(kernels):
    return torch.cat([torch.cat([circulant(kernel) for kernel in row], 1) for row in kernels])


@pytest.mark.parametrize(("out", "into", "size"), [(8, 12, 4), (12, 8, 4), (6, 6, 6), (6, 9, 3), (5, 7, 1), (10, 5, 5)])
def test_delta_is_made_of_circulant_blocks(out, into, size):
    adapter = make(nn.Linear(into, out), block_size=size)
    assert adapter.c3a_kernel.shape == (out // size, into // size, size)
    torch.testing.assert_close(adapter.canonical_delta(), block_matrix(adapter.c3a_kernel) / into)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12), (0, 12)])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_transform_gives_the_product_and_never_forms_delta(shape, size, monkeypatch):
    adapter = make(nn.Linear(12, 24), block_size=size)
    x, delta = torch.randn(shape), adapter.canonical_delta()
    if x.numel():
        monkeypatch.setattr(adapter, "delta_weight", None)
    torch.testing.assert_close(adapter.delta_forward(x), x @ delta.T)


def test_gradients_are_those_of_the_product():
    adapter = make(nn.Linear(6, 9), block_size=3).double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    given = torch.autograd.grad(adapter.delta_forward(x).square().sum(), [x, adapter.c3a_kernel])
    expected = torch.autograd.grad((x @ adapter.canonical_delta().T).square().sum(), [x, adapter.c3a_kernel])
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_coarser_than_the_transform_is_widened_for_it(dtype):
    adapter = make(nn.Linear(8, 8), block_size=4).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    output = adapter.delta_forward(x)
    assert output.dtype == dtype
    expected = x.float() @ (block_matrix(adapter.c3a_kernel.float()) / 8).T
    torch.testing.assert_close(output.float(), expected, atol=0.02, rtol=0.02)


def test_each_stacked_expert_has_kernels_of_its_own():
    adapter = make(ParameterLayer(Holder(3, 6, 8), "weight"), block_size=2)
    assert adapter.c3a_kernel.shape == (3, 3, 4, 2)
    for expert in range(3):
        torch.testing.assert_close(adapter.canonical_delta()[expert], block_matrix(adapter.c3a_kernel[expert]) / 8)


def test_stacked_experts_start_like_single_layers():
    stacked = C3AAdapter(ParameterLayer(Holder(50, 40, 80), "weight"), C3AConfig(block_size=20)).c3a_kernel
    single = C3AAdapter(adapt(nn.Linear(80, 40)), C3AConfig(block_size=20)).c3a_kernel
    bound = (6 / (80 + 40)) ** 0.5
    assert 0.9 * bound < single.abs().max() <= bound
    assert 0.9 * bound < stacked.abs().max() <= bound


def test_true_starts_with_a_model_as_it_was():
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    expected = layer(x)
    model = get_peft_model(nn.Sequential(layer), C3AConfig(block_size=4, init_weights=True, target_modules=["0"]))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(("layer", "size"), [(nn.Linear(12, 8), 3), (nn.Linear(8, 12), 8), (nn.Linear(4, 4), 8)])
def test_a_block_size_that_does_not_divide_is_refused_before_anything_changes(layer, size):
    first = nn.Linear(24, 24)
    net = nn.Sequential(first, layer)
    with pytest.raises(ConfigError, match=rf"C3AConfig\.block_size: {size} does not divide .*divisor of 4.*_pattern"):
        get_peft_model(net, C3AConfig(block_size=size, target_modules=["0", "1"]))
    assert net[0] is first and net[1] is layer
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert get_peft_model(net, C3AConfig(block_size=size, block_size_pattern={"1": 4}, target_modules=["0", "1"]))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), nn.Embedding(4, 4), nn.LayerNorm(4)])
def test_what_is_no_map_of_a_vector_is_refused(layer):
    with pytest.raises(UnsupportedLayerError, match=type(layer).__name__):
        get_peft_model(nn.Sequential(layer), C3AConfig(block_size=2, target_modules=["0"]))


@pytest.mark.parametrize(
    "options",
    [{"block_size": 0}, {"block_size": 2.0}, {"block_size_pattern": {"0": 0}}, {"init_weights": "lycoris"}],
    ids=str,
)
def test_bad_values_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=rf"C3AConfig\.{next(iter(options))}: "):
        C3AConfig(**options)


def test_default_targets():
    assert registry.default_target_modules("c3a", "llama") == ["q_proj", "v_proj"]
    assert registry.default_target_modules("c3a", "gpt2") == ["mlp.c_proj"]
    assert registry.default_target_modules("c3a", "custom") is None
