"""Singular parts of frozen weights, by each decomposition, on every kind of layer, dtype and device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore.adapters.singular import (
    SingularParts,
    careful_parts,
    decomposed,
    exact_parts,
    squared_parts,
    wide_matrix,
)
from peftcore.base_layers import ParameterLayer, adapt


class Holder(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))


@settings(deadline=None)
@given(
    out=st.integers(1, 12),
    into=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1.0, 6.0]),  # how many powers of ten the singular values span
    data=st.data(),
)
@pytest.mark.parametrize("squares", [True, False])
def test_the_halves_are_the_best_of_their_rank(squares, out, into, spread, data):
    """By Eckart and Young: what is left of the weight is what its other singular values make."""
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    short = min(out, into)
    r = data.draw(st.integers(1, short))
    u, v = torch.linalg.qr(torch.randn(out, short))[0], torch.linalg.qr(torch.randn(into, short))[0]
    layer = nn.Linear(into, out)
    with torch.no_grad():
        weight = layer.weight.copy_(u * torch.logspace(0, -spread, short) @ v.T).detach()
    parts = decomposed(adapt(layer), r, squared_parts if squares else exact_parts)
    a, b = parts.halves()
    assert (a.shape, b.shape, parts.s.shape) == ((r, into), (out, r), (r,))
    exact = torch.linalg.svdvals(weight)
    # Directions with singular values below the square root of the precision are as good as any other of these.
    floor = 2e-3 if squares else 1e-5
    assert torch.linalg.matrix_norm(weight - b @ a) <= torch.linalg.vector_norm(exact[r:]) + floor
    torch.testing.assert_close((a @ a.T).diagonal(), exact[:r], rtol=1e-4, atol=floor)
    torch.testing.assert_close((b.T @ b).diagonal(), exact[:r], rtol=1e-4, atol=floor)


@pytest.mark.parametrize(("out", "into"), [(3, 5), (5, 3), (4, 4)])
def test_the_leading_parts_are_the_first_of_all(out, into):
    torch.manual_seed(0)
    matrix = torch.randn(2, out, into, dtype=torch.float64)
    everything, leading = squared_parts(matrix), squared_parts(matrix, 2)
    identity = torch.eye(min(out, into), dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(everything.u * everything.s.unsqueeze(-2) @ everything.v, matrix)
    torch.testing.assert_close(everything.u.mT @ everything.u, identity)
    torch.testing.assert_close(everything.v @ everything.v.mT, identity)
    torch.testing.assert_close(leading.u, everything.u[..., :2])
    torch.testing.assert_close(leading.s, everything.s[..., :2])
    torch.testing.assert_close(leading.v, everything.v[..., :2, :])


def test_a_weight_of_zeros_gives_halves_of_zeros():
    a, b = squared_parts(torch.zeros(3, 5), 2).halves()
    assert not a.any() and not b.any()


@pytest.mark.parametrize(
    "base",
    [
        adapt(nn.Linear(6, 4)),
        adapt(nn.Conv2d(4, 6, (3, 2), groups=2)),
        adapt(nn.Embedding(9, 4)),
        ParameterLayer(Holder(3, 4, 6), "weight"),
        ParameterLayer(Holder(4, 6), "weight"),
    ],
    ids=str,
)
def test_every_weight_is_a_matrix_or_a_stack_of_matrices(base):
    parts = decomposed(base, min(base.matrix_shape), exact_parts)
    product = parts.u * parts.s.unsqueeze(-2) @ parts.v
    assert product.shape == (*base.stack_shape, *base.matrix_shape)
    torch.testing.assert_close(product.reshape(base.weight_shape), base.weight().detach())


@pytest.mark.parametrize(
    ("dtype", "asked", "done_in", "result"),
    [
        (torch.bfloat16, torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float64, torch.float64, torch.float32),
        (torch.float32, torch.float64, torch.float64, torch.float32),
        (torch.float64, torch.float32, torch.float64, torch.float64),
    ],
)
def test_nothing_is_done_in_a_coarser_dtype_than_was_asked(dtype, asked, done_in, result):
    seen = []

    def note(matrix):
        seen.append(matrix.dtype)
        return exact_parts(matrix)

    base = adapt(nn.Linear(6, 4).to(dtype))
    assert {part.dtype for part in decomposed(base, 2, note, asked)} == {result}
    assert seen == [done_in]
    assert wide_matrix(base).dtype == result and not wide_matrix(base).requires_grad


@pytest.mark.parametrize("how", ["the layer's", "the default"])
def test_nothing_is_computed_on_the_meta_device(how):
    def never(matrix):
        raise AssertionError("there is nothing to decompose")

    layer = Holder(3, 4, 6)
    base = ParameterLayer(layer.to("meta") if how == "the layer's" else layer, "weight")
    with torch.device("meta" if how == "the default" else "cpu"):
        parts = decomposed(base, 2, never)
    assert all(part.is_meta for part in parts)
    assert [tuple(part.shape) for part in parts] == [(3, 4, 2), (3, 2), (3, 2, 6)]
    assert isinstance(parts, SingularParts)


def spectrum(*values, out=12, into=9):
    """Return a weight with these singular values, and zeros."""
    generator = torch.Generator().manual_seed(3)
    u, _ = torch.linalg.qr(torch.randn(out, len(values), generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(into, len(values), generator=generator, dtype=torch.float64))
    return u * torch.tensor(values, dtype=torch.float64) @ v.T


WEIGHTS = {
    "falls slowly": spectrum(*[1 / n for n in range(1, 10)]),
    "falls fast": spectrum(*[4.0**-n for n in range(9)]),
    "falls faster than squares can tell": spectrum(*[30.0**-n for n in range(9)]),
    "has directions of no strength": spectrum(3.0, 2.0, 1.0),
    "is zero": torch.zeros(12, 9, dtype=torch.float64),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_careful_parts_are_right_whatever_the_spectrum(weight, transposed):
    weight = weight.T if transposed else weight
    u, s, v = careful_parts(weight)
    identity = torch.eye(9, dtype=torch.float64)
    torch.testing.assert_close(u * s @ v, weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(u.T @ u, identity, atol=1e-7, rtol=0)
    torch.testing.assert_close(v @ v.T, identity, atol=1e-7, rtol=0)
    torch.testing.assert_close(s, torch.linalg.svdvals(weight), atol=1e-12, rtol=1e-6)
