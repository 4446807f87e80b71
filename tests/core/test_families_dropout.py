"""Dropout of the input of a part of Δ, while the rest of it sees the whole input."""

import pytest
import torch
from torch import nn

from peftcore.adapters.dropout import drops, with_part_dropped
from peftcore.base_layers import adapt


class Half(nn.Module):
    """Drops the first half of the features, whatever the mode: what it leaves is known."""

    def forward(self, x):
        mask = torch.arange(x.shape[-1]) >= x.shape[-1] // 2
        return x * mask


def never():
    raise AssertionError("the part is needed only where something is dropped")


@pytest.mark.parametrize(("dropout", "training", "expected"), [(Half(), True, True), (Half(), False, False)])
def test_only_training_drops(dropout, training, expected):
    assert drops(dropout.train(training)) == expected
    assert drops(nn.Dropout(0.5).train(training)) == expected
    assert not drops(nn.Identity().train(training))


@pytest.mark.parametrize(
    ("layer", "part_shape", "x"),
    [
        (nn.Linear(6, 4, bias=False), (4, 6), torch.randn(3, 6)),
        (nn.Conv1d(4, 6, 3, groups=2, bias=False), (6, 6), torch.randn(3, 4, 8)),
        (nn.Conv2d(2, 4, 3, bias=False), (4, 18), torch.randn(3, 2, 8, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_part_alone_sees_what_is_left(layer, part_shape, x):
    torch.manual_seed(0)
    base = adapt(layer)
    part, rest = torch.randn(part_shape), torch.randn(part_shape)
    apply = lambda matrix, inputs: base.apply(matrix.reshape(base.weight_shape), inputs)  # noqa: E731
    whole = apply(part + rest, x)
    dropped = with_part_dropped(base, whole, x, Half().train(), lambda: part)
    torch.testing.assert_close(dropped, apply(part, Half()(x)) + apply(rest, x))
    for nothing in (Half().eval(), nn.Identity().train()):
        assert with_part_dropped(base, whole, x, nothing, never) is whole
