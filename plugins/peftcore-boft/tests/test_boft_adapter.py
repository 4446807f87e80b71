"""The mathematics of BOFT, and what it refuses."""

import pytest
import torch
from torch import nn

from peftcore import PeftModel, get_peft_model
from peftcore.base_layers import adapt
from peftcore.exceptions import ConfigError
from peftcore_boft import BOFTAdapter, BOFTConfig


def adapter_on(layer, **options):
    torch.manual_seed(0)
    return BOFTAdapter(adapt(layer), BOFTConfig(**options, init_weights=False))


def whole(adapter, size):
    """Return R, by turning the identity."""
    return adapter.turn(torch.eye(size), adapter.factors(), back=False).T


def butterfly(blocks, level):
    """Write one factor out: block k of a group rotates the half blocks k and k + 2**level of that group."""
    count, size, _ = blocks.shape
    half, distance = size // 2, 2**level
    matrix = torch.zeros(count * size, count * size)
    for number, block in enumerate(blocks):
        group, place = divmod(number, distance)
        first = (2 * distance * group + place) * half
        index = torch.cat((first + torch.arange(half), first + distance * half + torch.arange(half)))
        matrix[index[:, None], index[None, :]] = block
    return matrix


@pytest.mark.parametrize(
    ("size", "block", "number"), [(8, 2, 1), (8, 2, 3), (16, 4, 3), (24, 2, 3), (24, 6, 2), (9, 3, 1)]
)
def test_the_whole_is_the_product_of_butterfly_factors(size, block, number):
    adapter = adapter_on(nn.Linear(size, 5), boft_block_size=block, boft_n_butterfly_factor=number)
    product = torch.eye(size)
    for level, blocks in enumerate(adapter.factors()):
        product = product @ (torch.block_diag(*blocks) if level == 0 else butterfly(blocks, level))
    torch.testing.assert_close(whole(adapter, size), product, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(product @ product.T, torch.eye(size), atol=1e-5, rtol=1e-5)
    back = adapter.turn(torch.eye(size), adapter.factors(), back=True).T
    torch.testing.assert_close(back, product.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_each_factor_doubles_what_a_feature_is_joined_with(number):
    adapter = adapter_on(nn.Linear(16, 5), boft_block_size=2, boft_n_butterfly_factor=number)
    joined = (whole(adapter, 16).abs() > 1e-9).sum(1)
    assert joined.tolist() == [2**number] * 16


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(4, 6), (6, 1)), (nn.Conv2d(4, 6, 1), (1, 6))], ids=repr)
def test_outputs_are_scaled_and_the_bias_is_not(layer, shape):
    adapter = BOFTAdapter(adapt(layer), BOFTConfig())
    assert adapter.boft_s.shape == shape
    scale = torch.arange(1.0, 7.0)
    with torch.no_grad():
        adapter.boft_s.copy_(scale.reshape(shape))
    weight, bias = adapter.fold(layer.weight, layer.bias)
    torch.testing.assert_close(weight, layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    assert torch.equal(bias, layer.bias)


def test_a_lone_convolution_weight_has_its_gradient():
    model = get_peft_model(nn.Sequential(nn.Conv2d(4, 6, 3)), BOFTConfig(target_modules=["0"]))
    model(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("boft_block_num", {"boft_block_num": 2}),
        ("boft_block_num", {"boft_block_num": 0, "boft_block_size": 0}),
        ("boft_block_size", {"boft_block_size": -2}),
        ("boft_n_butterfly_factor", {"boft_n_butterfly_factor": 0}),
        ("boft_dropout", {"boft_dropout": -0.1}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, options):
    with pytest.raises(ConfigError, match=f"BOFTConfig.{field}"):
        BOFTConfig(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"boft_block_size": 8}, "boft_block_size: 8 does not divide the 12 .*Linear.* is 6"),
        ({"boft_block_size": 0, "boft_block_num": 5}, "boft_block_num: 5 does not divide the 12 .*Linear.* is 4"),
        (
            {"boft_block_size": 3, "boft_n_butterfly_factor": 2},
            "boft_n_butterfly_factor: 2 needs .*Linear.* 4 of size 3",
        ),
        (
            {"boft_block_size": 4, "boft_n_butterfly_factor": 2},
            "boft_n_butterfly_factor: 2 needs .*Linear.* 3 of size 4",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused_and_nothing_changes(options, says):
    model = nn.Sequential(nn.Linear(240, 12), nn.Linear(12, 2))
    before = list(model.named_modules())
    with pytest.raises(ConfigError, match=f"BOFTConfig.{says}"):
        get_peft_model(model, BOFTConfig(**options, target_modules=["0", "1"] if "8" in says else ["1"]))
    assert list(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_factors_are_in_the_file(tmp_path):
    options = {"boft_block_size": 2, "boft_n_butterfly_factor": 3, "init_weights": False, "target_modules": ["0"]}
    frozen, x = nn.Linear(16, 5), torch.randn(3, 16)
    model = get_peft_model(nn.Sequential(frozen), BOFTConfig(**options))
    expected = model(x)
    model.save_pretrained(tmp_path)
    model.unload()
    torch.testing.assert_close(PeftModel.from_pretrained(nn.Sequential(frozen), tmp_path)(x), expected)
