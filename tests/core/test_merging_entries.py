"""Merging what changes few entries of a weight, or its bias alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import WeightDelta
from peftcore.adapters.entries import ChangesEntries, Scattered, Slices
from peftcore.adapters.scale import OutputScale
from peftcore.adapters.selective import TrainedBias, TrainedTokens
from peftcore.base_layers import LinearLayer, adapt
from peftcore.config import LayerConfig
from peftcore.exceptions import MergeError
from peftcore.merging import MergedWeight

from ..base_layers.test_writing import Largest

OUT, IN = 6, 10
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PLACES = {
    "rows": lambda: Slices(0, torch.tensor([4, 1])),
    "columns": lambda: Slices(1, torch.tensor([7, 0])),
    "scattered": lambda: Scattered(torch.tensor([59, 3, 17], dtype=torch.int32)),
    "one": lambda: Scattered(torch.tensor([0])),
}
every_place = pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)


class Few(ChangesEntries):
    """Multiplies its entries by three and adds one; nobody could undo that by computing."""

    def __init__(self, base, places):
        super().__init__(base, LayerConfig())
        self.places = places
        self.factor = nn.Parameter(torch.tensor(3.0))

    def entries(self):
        return self.places

    def fold_entries(self, held):
        return held * self.factor + 1


class Sparse(WeightDelta, ChangesEntries):
    def __init__(self, base, places):
        super().__init__(base, LayerConfig())
        self.places = places
        self.value = nn.Parameter(torch.tensor(0.3))

    def entries(self):
        return self.places

    def fold_entries(self, held):
        return held + self.value

    def delta_weight(self):
        delta = torch.zeros(self.base.weight_shape)
        self.places.write_(delta, self.places.read(delta) + self.value)
        return delta


class Doubled(Adapter):
    def fold(self, weight, bias):
        return weight * 2, bias


class Shift(OutputScale):
    def __init__(self, base):
        super().__init__(base, LayerConfig())
        self.by = nn.Parameter(torch.randn(base.out_features))

    def shift(self):
        return self.by


def linear(dtype=torch.float32, bias=True):
    return adapt(nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False))


def embedding(dtype=torch.float32):
    return adapt(nn.Embedding(IN, OUT, dtype=dtype).requires_grad_(False))


def stored(base):
    return {name: value.detach().clone() for name, value in base.layer.state_dict().items()}


def assert_stored(base, expected):
    found = base.layer.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@every_place
@every_dtype
@pytest.mark.parametrize("make", [linear, embedding])
@pytest.mark.parametrize("part_cls", [Few, Sparse])
def test_merged_it_is_what_fold_says_and_unmerged_what_it_was_bit_for_bit(make, part_cls, places, dtype):
    base = make(dtype=dtype)
    parameter, where, before = base.stored, base.stored.data_ptr(), stored(base)
    part, merging = part_cls(base, places()), MergedWeight(base)
    expected = part.fold(base.weight().float(), None)[0].to(dtype)
    assert not torch.equal(expected, base.weight())
    merging.merge((), [part])
    assert torch.equal(base.read_weight(), expected)
    assert base.stored is parameter
    assert parameter.data_ptr() == where
    merging.unmerge([part])
    assert_stored(base, before)


@every_place
def test_fold_leaves_its_arguments_and_has_gradients(places):
    base = linear()
    part, weight = Few(base, places()), base.weight().detach().clone().requires_grad_()
    before = weight.detach().clone()
    folded, bias = part.fold(weight, base.bias)
    assert bias is base.bias
    assert torch.equal(weight, before)
    folded.sum().backward()
    assert torch.equal(weight.grad, torch.where(folded == weight, 1.0, 3.0))
    torch.testing.assert_close(part.factor.grad, places().read(before).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_of_the_weight_s_size_is_made(dtype):
    base = adapt(nn.Embedding(50, OUT, dtype=dtype).requires_grad_(False))
    part, merging = TrainedTokens(base, [3, 40]), MergedWeight(base)
    part.float()
    with Largest() as made:
        merging.merge((), [part])
        merging.unmerge([part])
    assert 0 < made.entries <= 2 * OUT


@pytest.mark.parametrize("safe_merge", [False, True])
def test_values_that_are_not_finite_are_refused_where_that_is_asked(safe_merge):
    base = linear()
    before, part, merging = stored(base), Few(base, PLACES["rows"]()), MergedWeight(base)
    with torch.no_grad():
        part.factor.fill_(float("nan"))
    if safe_merge:
        with pytest.raises(MergeError, match="not finite"):
            merging.merge((), [part], safe_merge=True)
        assert_stored(base, before)
        merging.unmerge(())
    else:
        merging.merge((), [part])
        assert base.read_weight().isnan().any()
        merging.unmerge([part])
    assert_stored(base, before)


@pytest.mark.parametrize("other", [Doubled, Few, Sparse, Shift], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("together", [False, True])
def test_with_others_it_acts_in_its_place(other, together):
    base = linear()
    before, merging = stored(base), MergedWeight(base)
    places = PLACES["columns"]()
    added = {Doubled: lambda: Doubled(base, LayerConfig()), Shift: lambda: Shift(base)}
    parts = [Sparse(base, places), added.get(other, lambda: other(base, places))()]
    weight, bias = base.weight(), base.bias
    for part in parts:
        weight, bias = part.fold(weight, bias)
    if together:
        merging.merge((), parts)
    else:
        merging.merge((), parts[:1])
        merging.merge(parts[:1], parts[1:])
    torch.testing.assert_close(base.read_weight(), weight)
    torch.testing.assert_close(base.read_bias(), bias)
    merging.unmerge(parts)
    assert_stored(base, before) if other is not Sparse else torch.testing.assert_close(stored(base), before)


def test_what_is_merged_stays_where_another_is_refused():
    base = linear()
    part, broken, merging = Few(base, PLACES["rows"]()), Shift(base), MergedWeight(base)
    before = stored(base)
    merging.merge((), [part])
    merged = stored(base)
    with torch.no_grad():
        broken.by.fill_(float("inf"))
    with pytest.raises(MergeError):
        merging.merge([part], [broken], safe_merge=True)
    assert_stored(base, merged)
    merging.unmerge([part])
    assert_stored(base, before)


def test_the_frozen_weight_is_kept_where_another_is_computed_from_it():
    base = linear()
    before, part, merging = base.weight().detach().clone(), Few(base, PLACES["rows"]()), MergedWeight(base)
    merging.merge((), [part], keep=True)
    assert torch.equal(base.weight(), before)
    assert not torch.equal(base.read_weight(), before)


@pytest.mark.parametrize("part_cls", [Few, Shift], ids=lambda cls: cls.__name__)
def test_a_layer_may_be_cast_while_something_is_merged(part_cls):
    base = linear()
    before = {name: value.half() for name, value in stored(base).items()}
    part = Shift(base) if part_cls is Shift else Few(base, PLACES["scattered"]())
    merging = MergedWeight(base)
    merging.merge((), [part])
    base.layer.half()
    merging.unmerge([part])
    assert_stored(base, before)


def test_a_layer_that_writes_in_its_own_way_is_asked_to():
    class Noting(LinearLayer):
        written = 0

        def replace_(self, weight):
            self.written += 1
            super().replace_(weight)

    base = Noting(nn.Linear(IN, OUT).requires_grad_(False))
    before, part, merging = stored(base), Few(base, PLACES["rows"]()), MergedWeight(base)
    merging.merge((), [part])
    assert base.written == 1
    merging.unmerge([part])
    assert base.written == 2
    assert_stored(base, before)


@given(st.sets(st.integers(0, OUT * IN - 1), min_size=1), st.booleans())
def test_what_is_read_and_written_are_the_same_entries(places, transposed):
    weight = torch.randn(IN, OUT).t() if transposed else torch.randn(OUT, IN)
    entries, flat = Scattered(torch.tensor(list(places))), weight.flatten().clone()
    assert torch.equal(entries.read(weight), flat[list(places)])
    entries.write_(weight, torch.arange(float(len(places))))
    flat[list(places)] = torch.arange(float(len(places)))
    assert torch.equal(weight.flatten(), flat)


# --------------------------------------------------------------------------------------------- the bias alone


@every_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_where_the_bias_alone_changes_the_weight_is_neither_written_nor_cast(dtype, bias):
    base = linear(dtype, bias)
    part, merging = Shift(base), MergedWeight(base)
    where, version, before = base.stored.data_ptr(), base.stored._version, stored(base)
    with Largest() as made:
        merging.merge((), [part], safe_merge=False)
    expected = part.by.detach() + (before["bias"].float() if bias else 0)
    assert torch.equal(base.read_bias(), expected.to(dtype))
    assert torch.equal(base.bias, before["bias"]) if bias else base.bias is None
    assert made.entries <= OUT
    assert (base.stored.data_ptr(), base.stored._version) == (where, version)
    merging.unmerge([part])
    assert_stored(base, before)


def test_biases_that_train_are_such_and_so_are_shifts_alone():
    base = linear()
    assert not TrainedBias(base).changes_weight
    assert not Shift(base).changes_weight

    class Inputs(Shift):
        def input_factors(self):
            return self.by

    class Outputs(Shift):
        def output_factors(self):
            return self.by

    class Mapped(Shift):
        def change_output(self, features):
            return features.flip(-1)

    assert all(cls(base).changes_weight for cls in (Inputs, Outputs, Mapped))


def test_a_bias_that_becomes_infinite_in_the_layer_s_dtype_is_refused():
    base = linear(torch.float16)
    part, merging, before = Shift(base), MergedWeight(base), stored(base)
    with torch.no_grad():
        part.by.fill_(1e6)
    with pytest.raises(MergeError, match="not finite"):
        merging.merge((), [part], safe_merge=True)
    assert_stored(base, before)
