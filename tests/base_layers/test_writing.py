"""How much memory it takes to write into a weight, and whose memory it is."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftcore.base_layers import LinearLayer, TransposedLinearLayer, adapt, storage
from peftcore.exceptions import MergeError

from .test_storage import Transposed, all_kinds

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("stored", DTYPES, ids=str)
linears = pytest.mark.parametrize(
    "make",
    [lambda **kw: adapt(nn.Linear(3, 5, **kw)), lambda **kw: TransposedLinearLayer(Transposed(**kw))],
    ids=["linear", "transposed"],
)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, views of others left out."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            given = [arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)]
            if result.untyped_storage().data_ptr() not in given:
                self.entries = max(self.entries, result.numel())
        return result


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(storage, "_PIECE", 7)


@linears
@every_dtype
@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_a_product_is_added_as_its_sum_rounded_once(make, stored, given):
    base = make(dtype=stored)
    before, b, a = base.weight().detach().clone(), torch.randn(5, 2, dtype=given), torch.randn(2, 3, dtype=given)
    parameter = getattr(base.layer, base.weight_name)
    base.add_product_(b, a, 0.5)
    exact = before.double() + 0.5 * b.double() @ a.double()
    # One rounding to the stored dtype, on top of a sum in the wider of all.
    wide = torch.promote_types(stored, given)
    error = 2 * max(torch.finfo(dtype).eps for dtype in (stored, wide))
    torch.testing.assert_close(base.weight().double(), exact, rtol=error, atol=error)
    assert base.weight().dtype == stored
    assert getattr(base.layer, base.weight_name) is parameter


@linears
@pytest.mark.parametrize("write", ["add_", "add_product_"])
def test_a_wider_sum_is_formed_piece_by_piece(make, write):
    base = make(dtype=torch.bfloat16)
    b, a = torch.randn(5, 2), torch.randn(2, 3)
    given = (b @ a,) if write == "add_" else (b, a)
    with Largest() as made:
        getattr(base, write)(*given)
    assert 0 < made.entries <= 7


@linears
@pytest.mark.parametrize("write", ["add_", "add_product_"])
def test_nothing_is_made_where_the_weight_is_wide_enough(make, write):
    base = make()
    b, a = torch.randn(5, 2), torch.randn(2, 3)
    given = (b @ a,) if write == "add_" else (b, a)
    with Largest() as made:
        getattr(base, write)(*given)
    assert made.entries == 0


@all_kinds
@every_dtype
def test_pieces_add_up_to_the_whole(make, stored):
    base = make(dtype=stored)
    before, delta = base.weight().detach().clone(), torch.randn(base.weight_shape)
    base.add_(delta)
    wide = torch.promote_types(stored, torch.float32)
    assert torch.equal(base.weight(), (before.to(wide) + delta).to(stored))


@linears
@pytest.mark.parametrize(("b", "a"), [((1, 2), (2, 3)), ((5, 2), (2, 1)), ((5, 2), (1, 3))])
def test_factors_that_do_not_fit_are_refused(make, b, a):
    base = make()
    before = base.weight().detach().clone()
    with pytest.raises((MergeError, RuntimeError)):
        base.add_product_(torch.ones(b), torch.ones(a))
    assert torch.equal(base.weight(), before)


@linears
def test_factors_of_rank_0_change_nothing(make):
    base = make(dtype=torch.bfloat16)
    before = base.weight().detach().clone()
    base.add_product_(torch.ones(5, 0), torch.ones(0, 3))
    assert torch.equal(base.weight(), before)


@all_kinds
@every_dtype
def test_a_weight_is_exchanged_for_another(make, stored):
    base = make(dtype=stored)
    parameter = getattr(base.layer, base.weight_name)
    before, new = base.weight().detach().clone(), base.weight().detach() * 2
    wanted = new.clone()
    held = base.exchange_(new)
    assert getattr(base.layer, base.weight_name) is parameter
    assert torch.equal(base.weight(), wanted)
    assert torch.equal(held, before)
    base.exchange_(held)
    assert torch.equal(base.weight(), before)


@linears
def test_exchanging_copies_nothing(make):
    base = make()
    new = base.weight().detach() * 2
    with Largest() as made:
        base.exchange_(new)
    assert made.entries == 0


@linears
def test_a_weight_keeps_its_order_in_memory(make):
    base = make()
    parameter = getattr(base.layer, base.weight_name)
    strides, new = parameter.stride(), torch.randn(base.weight_shape)
    for laid_out in (new.contiguous(), new.mT.contiguous().mT):
        base.exchange_(laid_out)
        assert parameter.stride() == strides
        assert torch.equal(base.weight(), new)


@all_kinds
def test_what_does_not_fit_is_not_exchanged(make):
    base = make()
    before = base.weight().detach().clone()
    with pytest.raises(MergeError, match="does not fit"):
        base.exchange_(torch.ones(1, *base.weight_shape[1:]))
    assert torch.equal(base.weight(), before)


@all_kinds
def test_another_dtype_is_written_in_the_stored_one(make):
    base = make(dtype=torch.bfloat16)
    new = torch.randn(base.weight_shape)
    base.exchange_(new)
    assert torch.equal(base.weight(), new.bfloat16())


def test_inference_tensors_are_written_in_place():
    with torch.inference_mode():
        base = adapt(nn.Linear(3, 5))
    before = base.weight().clone()
    held = base.exchange_(torch.ones(5, 3))
    assert torch.equal(held, before)
    assert base.layer.weight.is_inference()
    with torch.inference_mode():
        usual, new = adapt(nn.Linear(3, 5)), torch.ones(5, 3)
    usual.exchange_(new)
    base = adapt(nn.Linear(3, 5))
    base.exchange_(new)
    assert not base.layer.weight.is_inference()


class Careful(LinearLayer):
    """Says how it writes in the two methods that every storage has."""

    written = ()

    def add_(self, delta):
        self.written = (*self.written, "add")
        super().add_(delta)

    def replace_(self, weight):
        self.written = (*self.written, "replace")
        super().replace_(weight)


def test_a_class_that_writes_in_its_own_way_is_always_asked():
    base = Careful(nn.Linear(3, 5))
    before, b, a = base.weight().detach().clone(), torch.randn(5, 2), torch.randn(2, 3)
    base.add_product_(b, a, 2.0)
    torch.testing.assert_close(base.weight(), before + 2 * b @ a)
    base.exchange_(before)
    assert base.written == ("add", "replace")
    assert torch.equal(base.weight(), before)
