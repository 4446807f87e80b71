"""S · X with a sparse S that is never formed: the product, its gradients and theirs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcore.adapters.sparse_product import Pattern, SparseProduct, sparse_product


def drawn(size, width, share, dtype=torch.float64):
    torch.manual_seed(0)
    flat = torch.randperm(size * size)[: round(share * size * size)]
    values, x = torch.randn(len(flat), dtype=dtype), torch.randn(size, width, dtype=dtype)
    return torch.stack([flat // size, flat % size]), values.requires_grad_(), x.requires_grad_()


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 7), width=st.integers(0, 5), share=st.floats(0, 1), transposed=st.booleans())
def test_it_is_the_product(size, width, share, transposed):
    indices, values, x = drawn(size, width, share)
    outer = torch.randn_like(x)

    def product(values, x):
        return SparseProduct.apply(values, x, *Pattern.of(indices, (size, size)), transposed)

    def expected(values, x):
        dense = values.new_zeros(size, size).index_put(tuple(indices), values)
        return (dense.T if transposed else dense) @ x

    torch.testing.assert_close(product(values, x), expected(values, x))
    found, right = (torch.autograd.grad(f(values, x), (values, x), outer) for f in (product, expected))
    torch.testing.assert_close(found, right)
    if width and len(values):
        assert torch.autograd.gradgradcheck(product, (values, x))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen):
    indices, *operands = drawn(5, 3, 0.4, torch.float32)
    operands[frozen].requires_grad_(False)
    sparse_product(*operands, Pattern.of(indices, (5, 5))).square().sum().backward()
    assert operands[frozen].grad is None
    assert operands[1 - frozen].grad.any()


def test_any_layout_of_the_columns_will_do():
    indices, values, x = drawn(6, 4, 0.5)
    pattern = Pattern.of(indices, (6, 6))
    rows = x.detach().T.contiguous().requires_grad_()
    results = [sparse_product(values, columns, pattern) for columns in (x, rows.T)]
    torch.testing.assert_close(*results)
    weights = torch.randn(4, 6, dtype=torch.float64).T  # a gradient that is not contiguous either
    of_x, of_rows = (torch.autograd.grad((r * weights).sum(), i)[0] for r, i in zip(results, (x, rows), strict=True))
    torch.testing.assert_close(of_x, of_rows.T)
