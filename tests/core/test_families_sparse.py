"""Changes of a few entries of a weight, and the check of places that a file brings."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.adapters import sparse_product
from peftcore.adapters.sparse import SparseDelta, check_places, scattered
from peftcore.base_layers import adapt
from peftcore.config import LayerConfig
from peftcore.exceptions import CheckpointError
from peftcore.merging import MergedWeight

MATRIX = "the weight of a Linear"


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
    check_places("spots", torch.tensor([[0, 3, 3], [5, 0, 5]], dtype=dtype), (4, 6), MATRIX)
    check_places("spots", torch.tensor([0, 23], dtype=dtype), (24,), MATRIX)
    check_places("spots", torch.empty(2, 0, dtype=dtype), (4, 6), MATRIX)


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
        check_places("spots", places, sizes, MATRIX)


@pytest.mark.parametrize(("places", "sizes"), [([3, 0, 3], (24,)), ([[1, 2, 1], [5, 5, 5]], (4, 6))], ids=str)
def test_a_place_twice_is_refused(places, sizes):
    with pytest.raises(CheckpointError, match="spots must name each entry of the weight of a Linear once"):
        check_places("spots", torch.tensor(places), sizes, MATRIX)


class Chosen(SparseDelta):
    values_name, places_name = "numbers", "spots"

    def __init__(self, base, places, zeros=False):
        super().__init__(base, LayerConfig())
        self.hold_entries(len(places), lambda: places, zeros=zeros)


class ChosenByRows(Chosen):
    by_rows = True


def on(layer, share, cls=Chosen):
    torch.manual_seed(0)
    base = adapt(layer)
    places = torch.randperm(base.weight_shape.numel())[: round(share * base.weight_shape.numel())]
    return cls(base, places), places


@pytest.mark.parametrize("cls", [Chosen, ChosenByRows])
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(2, 4, 3), nn.Embedding(9, 5)], ids=repr)
def test_delta_is_the_numbers_at_the_places(cls, layer):
    adapter, places = on(layer, 0.3, cls)
    assert torch.equal(adapter.places(), places)
    assert torch.equal(adapter.delta_weight().flatten()[places], adapter.numbers)
    assert adapter.delta_weight().count_nonzero() == len(places)
    assert adapter.spots.dtype == torch.int32
    if cls is ChosenByRows:
        rows, columns = adapter.spots
        assert torch.equal(adapter.delta_weight().flatten(1)[rows, columns], adapter.numbers)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("tokens", [1, 7, 40])
@pytest.mark.parametrize("cls", [Chosen, ChosenByRows])
def test_few_entries_and_many_act_alike(share, tokens, cls):
    """Of a wide layer, so that some tokens are worked on at one time, and of one that is not square."""
    adapter, _ = on(nn.Linear(40, 30).double(), share, cls)
    adapter.double()
    operands = torch.randn(2, tokens, 40, dtype=torch.float64, requires_grad=True), adapter.numbers
    with mock.patch.object(sparse_product, "_PIECE", 40 * 16):
        results = adapter.delta_forward(operands[0]), operands[0] @ adapter.delta_weight().T
        weights = torch.randn_like(results[0])
        gradients = [torch.autograd.grad((result * weights).sum(), operands) for result in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_other_places_are_noticed():
    adapter, places = on(nn.Linear(20, 20), 0.05)
    x = torch.randn(3, 20)
    before = adapter.delta_forward(x)
    for change in (lambda: adapter.spots.copy_(places.flip(0)), lambda: setattr(adapter, "spots", places.int() // 2)):
        change()
        torch.testing.assert_close(adapter.delta_forward(x), x @ adapter.delta_weight().T)
        assert not torch.allclose(adapter.delta_forward(x), before)


def test_only_few_entries_are_kept_from_being_formed():
    for share, whole in ((0.01, False), (0.03, False), (0.04, True), (0.5, True)):
        assert on(nn.Linear(40, 30), share)[0].acts_whole() == whole


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_entries_are_written_alone_and_given_back(transposed, dtype):
    layer = nn.Linear(12, 8).to(dtype)
    if transposed:
        layer.weight = nn.Parameter(torch.randn(12, 8).to(dtype).T)
    adapter, places = on(layer, 0.1)
    before, others = layer.weight.detach().clone(), torch.ones(96, dtype=torch.bool)
    others[places] = False
    merging, stored = MergedWeight(adapter.base), layer.weight.data_ptr()
    merging.merge((), [adapter])
    assert layer.weight.data_ptr() == stored
    torch.testing.assert_close(layer.weight, (before.float() + adapter.delta_weight()).to(dtype))
    assert torch.equal(layer.weight.flatten()[others], before.flatten()[others])
    merging.unmerge([adapter])
    assert torch.equal(layer.weight, before)


def test_numbers_start_as_zeros_and_wait_for_a_file_on_the_meta_device():
    base = adapt(nn.Linear(6, 4))
    assert not Chosen(base, torch.arange(3), zeros=True).numbers.any()
    with torch.device("meta"):
        adapter = ChosenByRows(base, torch.arange(3))
    assert adapter.numbers.is_meta and adapter.spots.is_meta and adapter.spots.shape == (2, 3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda adapter: pickle.loads(pickle.dumps(adapter))])
def test_a_copy_finds_out_by_itself_where_its_entries_are(copied):
    """However often the places were changed before, and the copy's were not."""
    adapter, _ = on(nn.Linear(20, 20), 0.05)
    x = torch.randn(3, 20)
    for _ in range(4):
        adapter.delta_forward(x)
        adapter.spots.copy_(adapter.spots.roll(1))
        torch.testing.assert_close(copied(adapter).delta_forward(x), x @ adapter.delta_weight().T)
