"""Parts of a fused linear layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.base_layers import RowsLayer, TransposedLinearLayer, adapt, parts_of
from peftcore.exceptions import ConfigError, MergeError, TargetError, UnsupportedLayerError


def fused(out_features=12, **kwargs):
    return adapt(nn.Linear(3, out_features, **kwargs))


def indices(rows, size):
    return torch.arange(size)[rows].tolist()


def test_equal_and_proportional_parts_are_contiguous():
    parts = parts_of(fused(), ["q", "k", "v"])
    assert parts == {"q": slice(0, 4), "k": slice(4, 8), "v": slice(8, 12)}
    assert parts_of(fused(), {"q": 4, "k": 1, "v": 1}) == {"q": slice(0, 8), "k": slice(8, 10), "v": slice(10, 12)}
    assert parts_of(fused(), {"parts": ["gate", "up"], "groups": 1}) == parts_of(fused(), ["gate", "up"])


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 3))
def test_parts_that_alternate_in_groups(shares, groups, unit):
    size = groups * sum(shares) * unit
    spec = {"parts": {f"part{i}": share for i, share in enumerate(shares)}, "groups": groups}
    parts = parts_of(fused(size), spec)
    # The definition: outputs are [groups, sum of shares, unit], and each part takes its share of the middle dimension.
    blocks = torch.arange(size).reshape(groups, sum(shares), unit).split(shares, dim=1)
    assert [indices(rows, size) for rows in parts.values()] == [block.flatten().tolist() for block in blocks]


def test_the_layout_of_heads_that_hold_query_key_and_value():
    """GPT-NeoX splits its fused projection so: per head, then into three."""
    heads, head_dim, x = 2, 2, torch.randn(5, 3)
    base = fused()
    query, key, value = base.forward(x).view(5, heads, 3 * head_dim).chunk(3, dim=-1)
    parts = parts_of(base, {"parts": ["q", "k", "v"], "groups": heads})
    for expected, rows in zip((query, key, value), parts.values(), strict=True):
        assert torch.equal(RowsLayer(base, rows).forward(x).view(5, heads, head_dim), expected)


@pytest.mark.parametrize(
    "spec",
    [
        [],
        {},
        "qkv",
        3,
        ["q", "q"],
        ["q", 1],
        {"q": 0},
        {"q": -1, "k": 1},
        {"q": 1.5},
        {"q": True},
        {"q": [1]},
        {1: 1},
        {"parts": ["q"], "groups": 0},
        {"parts": ["q"], "groups": "2"},
        {"parts": [], "groups": 2},
        {"parts": {"parts": ["q"], "groups": 1}, "groups": 2},
    ],
    ids=str,
)
def test_a_specification_that_makes_no_sense(spec):
    with pytest.raises(ConfigError, match=r"[Pp]arts of a fused layer"):
        parts_of(fused(), spec)


@pytest.mark.parametrize("spec", [list("abcde"), {"q": 4, "k": 3}, {"parts": ["q", "k", "v"], "groups": 3}], ids=str)
def test_outputs_that_can_not_be_divided(spec):
    with pytest.raises(TargetError, match="12 outputs of Linear can't be divided"):
        parts_of(fused(), spec)


def test_only_linear_layers_have_parts():
    with pytest.raises(UnsupportedLayerError, match="Conv2d is of kind conv2d"):
        RowsLayer(adapt(nn.Conv2d(2, 4, 1)), slice(0, 2))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12))
        self.bias = nn.Parameter(torch.randn(12))

    def forward(self, x):
        return x @ self.weight + self.bias


BASES = {"linear": fused, "transposed": lambda: TransposedLinearLayer(Transposed())}
ROWS = {"slice": slice(4, 8), "index": torch.tensor([7, 0, 11])}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
class TestRows:
    def test_they_are_a_linear_layer(self, make, rows):
        base, x = make(), torch.randn(2, 5, 3)
        part = RowsLayer(base, rows)
        assert (part.kind, part.in_features, part.out_features) == ("linear", 3, len(indices(rows, 12)))
        assert part.weight_shape == part.weight().shape
        output = part.add_bias(part.apply(part.weight(), x), part.bias)
        assert torch.allclose(output, base.layer(x)[..., rows], atol=1e-6)
        assert torch.equal(part.forward(x), base.layer(x)[..., rows])

    def test_writing_leaves_the_other_rows_alone(self, make, rows):
        base = make()
        part, before = RowsLayer(base, rows), base.weight().detach().clone()
        others = [row for row in range(12) if row not in indices(rows, 12)]
        delta = torch.randn(part.weight_shape)
        part.add_(delta)
        assert torch.equal(part.weight(), before[rows] + delta)
        part.replace_(delta)
        assert torch.equal(part.weight(), delta)
        bias = base.bias.detach().clone()
        part.set_bias_(torch.ones(part.out_features))
        assert part.bias.tolist() == [1] * part.out_features
        assert torch.equal(base.weight()[others], before[others])
        assert torch.equal(base.bias[others], bias[others])

    def test_nothing_is_registered(self, make, rows):
        part = RowsLayer(make(), rows)
        assert set(part.layer.state_dict()) == {"weight", "bias"}


def test_a_part_of_a_bias_that_was_not_there():
    base = fused(bias=False)
    part = RowsLayer(base, slice(10, 12))
    assert part.bias is None
    part.set_bias_(torch.tensor([1.0, 2.0]))
    assert base.bias.tolist() == [0] * 10 + [1, 2]
    with pytest.raises(MergeError, match="bias alone"):
        part.set_bias_(None)
    with pytest.raises(MergeError, match="does not fit"):
        part.set_bias_(torch.zeros(1))
