"""What the methods share that turn a layer's features by an orthogonal matrix."""

import pytest
import torch
from torch import nn

from peftcore import LayerConfig, option
from peftcore.adapters.orthogonal import (
    BlockConfig,
    OrthogonalTransform,
    block_layout,
    cayley,
    cayley_series,
    check_blocks,
    skew_symmetric,
    turn_blocks,
    turned_size,
)
from peftcore.base_layers import ParameterLayer, adapt
from peftcore.exceptions import ConfigError

from .models import same


class CutConfig(LayerConfig, method="cut"):
    number: int = option(0, "Number of blocks.")
    size: int = option(2, "Their size.")


class CutAdapter(OrthogonalTransform):
    def __init__(self, base, config, shared=None):
        super().__init__(base, config, shared)
        blocks, size = block_layout(base, config, "number", "size")
        self.cut_R = nn.Parameter(torch.randn(blocks, size, size))

    def factors(self):
        return cayley(self.cut_R - self.cut_R.mT)

    def turn(self, vectors, factors, back):
        return turn_blocks(vectors, factors, back)


LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv1d": lambda: nn.Conv1d(2, 4, 3),
    "conv2d": lambda: nn.Conv2d(4, 4, (1, 3), groups=2),
    "conv3d": lambda: nn.Conv3d(1, 4, (1, 2, 3)),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "embedding": lambda: nn.Embedding(5, 6),
}


def experts():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(3, 4, 6))
    return ParameterLayer(module, "weight")


BASES = {**{name: lambda make=make: adapt(make()) for name, make in LAYERS.items()}, "experts": experts}


@pytest.mark.parametrize("kind", BASES)
def test_the_weight_is_turned_whole(kind):
    base = BASES[kind]()
    adapter = CutAdapter(base, CutConfig(size=3))
    assert turned_size(base) == 6
    whole = torch.block_diag(*adapter.factors())
    same(whole @ whole.T, torch.eye(6))
    weight = base.weight()
    turned = adapter.fold(weight, base.bias)[0]
    if kind == "embedding":
        same(turned, whole @ weight)
    else:
        same(turned, (weight.reshape(-1, 6) @ whole).reshape(weight.shape))


@pytest.mark.parametrize("back", [False, True])
def test_blocks_act_as_the_matrix_of_them(back):
    blocks, vectors = torch.randn(3, 2, 2), torch.randn(4, 5, 6)
    whole = torch.block_diag(*blocks)
    same(turn_blocks(vectors, blocks, back), vectors @ (whole if back else whole.T))
    assert turn_blocks(torch.empty(0, 5, 6), blocks, back).shape == (0, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_cayley_transform_is_orthogonal_in_every_dtype(dtype):
    skew = torch.randn(3, 4, 4)
    skew = (skew - skew.mT).to(dtype)
    rotation = cayley(skew)
    assert rotation.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    same(rotation @ rotation.mT, torch.eye(4, dtype=rotation.dtype).expand(3, 4, 4))
    same(cayley(-skew), rotation.mT)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding"])
def test_blocks_drop_out_in_training_calls_alone(kind):
    base = BASES[kind]()
    adapter = CutAdapter(base, CutConfig(size=2)).train()
    adapter.block_dropout = 0.5
    weight, eye = base.weight(), torch.eye(2)
    whole = adapter.fold(weight, None)[0]
    same(adapter.fold(weight, None)[0], whole)
    seen = set()
    for _ in range(50):
        if kind == "linear":
            turned = adapter.pre(torch.eye(6)).T
        elif kind == "embedding":
            turned = adapter.post(torch.eye(6)).T
        else:
            rows = adapter.fold_in_call(weight, None)[0].reshape(-1, 6)
            turned = torch.linalg.lstsq(weight.reshape(-1, 6), rows).solution
        if kind == "conv2d":  # four rows do not determine the matrix
            seen.add(bool(torch.allclose(rows.reshape(weight.shape), whole, atol=1e-6)))
            continue
        pieces = [turned[i : i + 2, i : i + 2] for i in (0, 2, 4)]
        same(turned, torch.block_diag(*pieces))
        for piece, block in zip(pieces, adapter.factors(), strict=True):
            kept = torch.allclose(piece, block, atol=1e-6)
            assert kept or torch.equal(piece, eye)
            seen.add(kept)
    assert seen == {True, False}
    adapter.eval()
    same(adapter.fold_in_call(weight, None)[0], whole)


@pytest.mark.parametrize(("options", "field"), [({"size": 4}, "size"), ({"number": 5, "size": 0}, "number")])
def test_blocks_that_do_not_divide_are_refused_with_the_nearest_that_do(options, field):
    with pytest.raises(ConfigError, match=rf"CutConfig\.{field}: .*Linear.*nearest.* is (3|6)"):
        CutAdapter(adapt(nn.Linear(6, 4)), CutConfig(**options))


def test_the_nearest_size_is_the_smaller_of_two():
    base = adapt(nn.Linear(12, 4))
    assert block_layout(base, CutConfig(size=5), "number", "size", nearest=True) == (3, 4)
    assert block_layout(base, CutConfig(size=100), "number", "size", nearest=True) == (1, 12)
    assert block_layout(base, CutConfig(number=5, size=0), "number", "size", nearest=True) == (4, 3)


def test_blocks_of_one_feature_are_refused():
    with pytest.raises(ConfigError, match="size 1"):
        CutAdapter(adapt(nn.Linear(6, 4)), CutConfig(number=6, size=0))


@pytest.mark.parametrize("both", [{"number": 2, "size": 3}, {"number": 0, "size": 0}])
def test_number_and_size_exclude_each_other(both):
    with pytest.raises(ConfigError, match="either it or size"):
        check_blocks(CutConfig(**both), "number", "size")


class BlocksConfig(BlockConfig, method="blocks"):
    count_field, size_field = "number", "size"

    number: int = option(0, "Number of blocks.")
    size: int = option(2, "Their size.")


@pytest.mark.parametrize("both", [{"number": 2, "size": 3}, {"size": 0}])
def test_a_config_of_blocks_checks_its_two_fields(both):
    assert (BlocksConfig().size, BlocksConfig(number=3, size=0).number) == (2, 3)
    with pytest.raises(ConfigError, match=r"BlocksConfig\.number: give either it or size"):
        BlocksConfig(**both)


class ScaledCut(CutAdapter):
    def turned_weight(self, weight, factors):
        return 2 * super().turned_weight(weight, factors)


def test_what_is_done_beside_turning_is_done_in_merged_weights_and_in_calls():
    adapter = ScaledCut(adapt(nn.Conv1d(2, 4, 3)), CutConfig(size=3))
    weight = adapter.base.weight()
    turned = weight.reshape(4, 6) @ torch.block_diag(*adapter.factors())
    for changed in (adapter.transform(weight), adapter.transform_in_call(weight)):
        same(changed.reshape(4, 6), 2 * turned)


@pytest.mark.parametrize("terms", range(1, 9))
@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (2, 3, 4, 4)])
def test_the_series_is_cut_off_where_it_is_asked_to_be(terms, shape):
    """(I + Q)·(I + Q + … ), whose first two orders stand alone and whose highest power is what the product leaves."""
    skew = torch.randn(shape, dtype=torch.float64) / 4
    skew = skew - skew.mT
    powers = [torch.eye(4, dtype=torch.float64).expand(shape)]
    for _ in range(8):
        powers.append(powers[-1] @ skew)
    if terms < 3:
        expected = powers[0] + 2 * powers[1] * (terms - 1)
    else:
        expected = (powers[0] + skew) @ sum(powers[: max(terms, 4) - 1])
    torch.testing.assert_close(cayley_series(skew, terms), expected)


@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_upper_triangles_are_read_row_by_row(stack, dtype):
    entries = torch.randn(*stack, 6, dtype=dtype).requires_grad_()
    skew = skew_symmetric(entries, 4)
    assert skew.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(skew, -skew.mT)
    rows, columns = zip((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), strict=True)
    assert torch.equal(skew[..., list(rows), list(columns)], entries.to(skew.dtype))
    weights = torch.arange(6.0, dtype=skew.dtype)
    (skew[..., list(rows), list(columns)] * weights).sum().backward()
    assert torch.equal(entries.grad, weights.to(dtype).expand_as(entries))
