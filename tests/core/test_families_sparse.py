"""Matrices of a few entries, and the check of places that a file brings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.adapters.sparse import check_places, scattered
from peftcore.base_layers import adapt
from peftcore.exceptions import CheckpointError

BASE = adapt(nn.Linear(6, 4))


@settings(deadline=None, max_examples=40)
@given(
    stack=st.sampled_from([(), (2,)]),
    places=st.lists(st.integers(0, 11), max_size=20),
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_values_are_added_at_their_places(stack, places, dtype):
    values = torch.randint(-3, 4, (*stack, len(places))).to(dtype)
    result = scattered(values, torch.tensor(places, dtype=torch.long), (3, 4))
    assert result.shape == (*stack, 3, 4) and result.dtype == dtype
    for place in range(12):
        of_place = [n for n, other in enumerate(places) if other == place]
        assert torch.equal(result.flatten(len(stack))[..., place], values[..., of_place].sum(-1))


def test_gradients_come_from_the_places():
    places = torch.tensor([5, 0, 5])
    values = torch.zeros(3, requires_grad=True)
    weights = torch.arange(6.0).reshape(2, 3)
    (scattered(values, places, (2, 3)) * weights).sum().backward()
    assert values.grad.tolist() == [5, 0, 5]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_places_inside_of_the_weight_are_accepted(dtype):
    check_places("spots", torch.tensor([[0, 3, 3], [5, 0, 5]], dtype=dtype), (4, 6), BASE)
    check_places("spots", torch.tensor([0, 23], dtype=dtype), (24,), BASE)
    check_places("spots", torch.empty(2, 0, dtype=dtype), (4, 6), BASE)


@pytest.mark.parametrize(
    ("places", "sizes"),
    [
        (torch.tensor([0, 24]), (24,)),
        (torch.tensor([-1, 0]), (24,)),
        (torch.tensor([0.0, 1.0]), (24,)),
        (torch.tensor([0j, 1]), (24,)),
        (torch.tensor([True, False]), (24,)),
        (torch.tensor([[4, 0], [0, 0]]), (4, 6)),
        (torch.tensor([[0, 0], [0, 6]]), (4, 6)),
        (torch.tensor([0, 0, 0]), (4, 6)),
    ],
    ids=str,
)
def test_other_places_are_refused_by_name(places, sizes):
    with pytest.raises(CheckpointError, match=rf"spots must be integers .*Linear.*{' × '.join(map(str, sizes))}"):
        check_places("spots", places, sizes, BASE)
