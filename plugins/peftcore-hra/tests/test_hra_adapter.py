"""The mathematics of HRA, and what it refuses."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftcore import get_peft_model
from peftcore.base_layers import adapt
from peftcore.exceptions import ConfigError
from peftcore_hra import HRAAdapter, HRAConfig


def chain(vectors):
    """Multiply the reflections one by one, as the paper has them."""
    whole = torch.eye(len(vectors), dtype=vectors.dtype)
    for u in vectors.T:
        whole = whole @ (torch.eye(len(u), dtype=u.dtype) - 2 * torch.outer(u, u) / (u @ u))
    return whole


def turned(adapter, vectors):
    """Return the matrix by which an adapter with these vectors turns a weight."""
    adapter.hra_u = nn.Parameter(vectors)
    return adapter.transform(torch.eye(len(vectors), dtype=vectors.dtype)).detach()


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 9), r=st.integers(1, 12), seed=st.integers(0, 9))
def test_the_whole_is_the_chain_of_reflections(size, r, seed):
    vectors = torch.randn(size, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    adapter = HRAAdapter(adapt(nn.Linear(size, size).double()), HRAConfig(r=r, init_weights=False))
    torch.testing.assert_close(turned(adapter, vectors), chain(vectors))


@pytest.mark.parametrize("r", [1, 3, 7])
def test_gram_schmidt_keeps_what_the_first_vectors_span(r):
    adapter = HRAAdapter(adapt(nn.Linear(7, 7).double()), HRAConfig(r=r, apply_GS=True, init_weights=False))
    vectors = torch.randn(7, r, dtype=torch.float64)
    whole = turned(adapter, vectors)
    # Reflections in orthogonal directions turn the sign of all that these span, and of nothing else.
    torch.testing.assert_close(whole @ vectors, -vectors)
    torch.testing.assert_close(whole @ whole, torch.eye(7, dtype=torch.float64))
    assert whole.trace().item() == pytest.approx(7 - 2 * r)


def test_a_vector_of_zeros_reflects_nothing():
    adapter = HRAAdapter(adapt(nn.Linear(5, 5)), HRAConfig(r=3, init_weights=False))
    vectors = torch.randn(5, 3)
    vectors[:, 1] = 0
    torch.testing.assert_close(turned(adapter, vectors), chain(vectors[:, [0, 2]]))


def test_gradients_are_those_of_the_chain():
    adapter = HRAAdapter(adapt(nn.Linear(5, 4).double()), HRAConfig(r=3, init_weights=False))
    u, x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(6, 5, dtype=torch.float64)
    adapter._parameters.pop("hra_u")
    adapter.hra_u = u
    (ours,) = torch.autograd.grad(adapter.pre(x).pow(3).sum(), u)
    (expected,) = torch.autograd.grad((x @ chain(u).T).pow(3).sum(), u)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("options", "warns"), [({"r": 4}, None), ({"r": 3}, "odd"), ({"apply_GS": True}, "orthogonal")]
)
def test_a_start_that_is_not_the_frozen_model_is_said(options, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        HRAAdapter(adapt(nn.Linear(9, 5)), HRAConfig(**options))
        HRAAdapter(adapt(nn.Linear(9, 5)), HRAConfig(**options, inference_mode=True))
        HRAAdapter(adapt(nn.Linear(9, 5)), HRAConfig(**options, init_weights=False))
    assert [warns in str(warning.message) for warning in caught] == ([True] if warns else [])


@pytest.mark.parametrize(("field", "value"), [("r", 0), ("r", "8"), ("apply_GS", 1), ("init_weights", "pairs")])
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"HRAConfig.{field}"):
        HRAConfig(**{field: value})


def test_more_orthogonal_vectors_than_dimensions_are_refused_and_nothing_changes():
    model = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 2))
    before = list(model.named_modules())
    with pytest.raises(ConfigError, match=r"HRAConfig\.r: 5 vectors .* 4 dimensions of a Linear"):
        get_peft_model(model, HRAConfig(r=5, apply_GS=True, init_weights=False, target_modules=["0", "1"]))
    assert list(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
