"""What merging makes, keeps and rounds."""

import pytest
import torch
from torch import nn

from peftcore.adapters.base import Adapter
from peftcore.adapters.delta import ThinFactors, WeightDelta
from peftcore.adapters.low_rank import LowRankDelta
from peftcore.base_layers import adapt
from peftcore.config import LayerConfig
from peftcore.merging import MergedWeight

from ..base_layers.test_writing import Largest

SIZE = 64


class Thin(WeightDelta):
    def __init__(self, base, rank=3, scaling=0.3):
        super().__init__(base, LayerConfig())
        self.a, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((rank, SIZE), (SIZE, rank)))
        self.scaling = scaling

    def thin_factors(self):
        return ThinFactors(self.a, self.b, self.scaling)

    def delta_weight(self):
        raise AssertionError("The matrix is not to be formed.")


class Whole(Thin):
    def thin_factors(self):
        return None

    def delta_weight(self):
        return self.scaling * self.b @ self.a


class Own(Adapter):
    """Its weight is a tensor of its own, or one that it shares with other layers."""

    def __init__(self, base, shared=None):
        super().__init__(base, LayerConfig(), shared)
        self.own = nn.Parameter(torch.randn(base.weight_shape))

    def fold(self, weight, bias):
        return (self.own if self.shared is None else self.shared.weight), bias


class BiasAlone(Adapter):
    def fold(self, weight, bias):
        return weight, bias + 1


def linear(dtype=torch.float32):
    return adapt(nn.Linear(SIZE, SIZE, dtype=dtype).requires_grad_(False))


def product(part):
    return part.scaling * part.b.detach().double() @ part.a.detach().double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [(Thin,), (Thin, Thin), (Thin, Whole), (Whole,)], ids=str)
def test_the_sum_of_all_is_rounded_once(dtype, classes):
    base = linear(dtype)
    before, parts = base.weight().detach().double(), [own(base, rank + 1) for rank, own in enumerate(classes)]
    if Whole in classes:
        for part in parts:
            part.delta_weight = lambda part=part: part.scaling * part.b @ part.a
    MergedWeight(base).merge((), parts)
    exact = before + sum(product(part) for part in parts)
    # Half a step of the stored dtype, and what a sum in float32 may lose.
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5
    assert ((base.weight().double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("classes", [(Thin,), (Thin, Thin), (Whole, Whole)], ids=str)
def test_what_was_added_is_subtracted(classes):
    base = linear()
    before, parts = base.weight().detach().clone(), [own(base) for own in classes]
    merging = MergedWeight(base)
    merging.merge((), parts)
    assert not torch.allclose(base.weight(), before, atol=0.1)
    merging.unmerge(parts)
    torch.testing.assert_close(base.weight(), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [None, nn.Linear(SIZE, SIZE)], ids=["own", "shared"])
def test_the_layer_never_stores_an_adapter_s_tensor(shared):
    base = linear()
    before, part = base.weight().detach().clone(), Own(base, shared)
    tensor = part.own if shared is None else shared.weight
    merging = MergedWeight(base)
    merging.merge((), [part])
    merged = base.read_weight().detach().clone()
    assert torch.equal(merged, tensor)
    with torch.no_grad():
        tensor.add_(1)
    assert torch.equal(base.read_weight(), merged)
    merging.unmerge([part])
    assert torch.equal(base.weight(), before)
    assert torch.equal(tensor, merged + 1)


def test_the_frozen_weight_is_kept_and_not_copied():
    base = linear()
    stored = base.layer.weight
    where, before = stored.data_ptr(), stored.detach().clone()
    merging = MergedWeight(base)
    merging.merge((), [Own(base)])
    assert base.layer.weight is stored
    assert base.weight().data_ptr() == where
    merging.unmerge(())
    assert stored.data_ptr() == where
    assert torch.equal(stored, before)


def test_a_weight_that_stays_is_not_written():
    base = linear()
    where, version = base.layer.weight.data_ptr(), base.layer.weight._version
    weight, bias = base.layer.weight.detach().clone(), base.layer.bias.detach().clone()
    merging = MergedWeight(base)
    merging.merge((), [BiasAlone(base, LayerConfig())])
    assert torch.equal(base.layer.bias, bias + 1)
    assert torch.equal(base.bias, bias)
    merging.unmerge(())
    assert torch.equal(base.layer.bias, bias)
    assert torch.equal(base.layer.weight, weight)
    assert (base.layer.weight.data_ptr(), base.layer.weight._version) == (where, version)


class Apart(LowRankDelta):
    """Acts in a way of its own in a call."""

    def __init__(self, base):
        super().__init__(base, LayerConfig())
        self.a, self.b = (nn.Parameter(torch.randn(shape)) for shape in ((3, base.in_features), (base.out_features, 3)))

    def factors(self):
        return self.a, self.b

    def delta_forward(self, x):
        raise AssertionError("It is not called.")


class Formed(Apart):
    def delta_weight(self):
        return super().delta_weight() * 2


@pytest.mark.parametrize(
    ("layer", "largest"), [(nn.Linear(8, 6), 0), (nn.Embedding(8, 6), 0), (nn.Conv1d(8, 6, 1), 48)]
)
def test_a_matrix_is_not_formed_for_a_product_however_it_acts_in_a_call(layer, largest):
    base = adapt(layer.requires_grad_(False))
    before, part, merging = base.weight().detach().clone(), Apart(base), MergedWeight(base)
    with Largest() as made:
        merging.merge((), [part])
    assert made.entries == largest
    torch.testing.assert_close(base.weight(), before + (part.b @ part.a).reshape(before.shape))
    merging.unmerge([part])
    torch.testing.assert_close(base.weight(), before)


def test_what_is_more_than_a_product_is_formed():
    base = linear()
    before, part = base.weight().detach().clone(), Formed(base)
    MergedWeight(base).merge((), [part])
    torch.testing.assert_close(base.weight(), before + 2 * part.b @ part.a)
