"""How close two results must be, what must be refused, and what is said when it is otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """How far apart two equal results may be.

    Attributes:
        relative: The largest difference of two entries, in units of the largest expected entry.
        reason: Why not less.
    """

    relative: float
    reason: str

    def allowed(self, expected: Tensor) -> float:
        """Return the largest difference allowed from these values."""
        return self.relative * (expected.abs().max().item() if expected.numel() else 0.0)


FLOAT32 = Tolerance(
    5e-5, "float32 keeps seven digits, and the sums, products and inverses of these small models lose two or three"
)
BFLOAT16 = Tolerance(
    8 * 2**-8, "bfloat16 keeps eight bits; each layer's merged weight and output are rounded to them once"
)
EXACT = Tolerance(0.0, "nothing is computed anew")


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two entries; infinite if one is not finite."""
    if not expected.numel():
        return 0.0
    apart = (actual.detach().double() - expected.detach().double()).abs()
    return torch.nan_to_num(apart, nan=math.inf, posinf=math.inf).max().item()


def assert_close(actual: Tensor, expected: Tensor, what: str, cause: str, tolerance: Tolerance = FLOAT32) -> None:
    """Check that two results are equal up to rounding.

    Args:
        actual: What came out.
        expected: What should have.
        what: What is compared, as the start of a sentence: "the merged model's output differs from …".
        cause: What would explain a difference, as a question.
        tolerance: How far apart they may be.

    Raises:
        AssertionError: They differ; it says by how much, how much was allowed, and the likely cause.
    """
    __tracebackhide__ = True
    if actual.shape != expected.shape:
        raise AssertionError(f"{what} in shape: {list(actual.shape)} instead of {list(expected.shape)}. {cause}")
    if actual.dtype != expected.dtype:
        raise AssertionError(f"{what} in dtype: {actual.dtype} instead of {expected.dtype}. {cause}")
    apart, allowed = difference(actual, expected), tolerance.allowed(expected)
    if apart > allowed:
        raise AssertionError(f"{what} by {apart:.2g}; {allowed:.2g} is allowed, since {tolerance.reason}. {cause}")


@contextmanager
def refused(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Check that the block raises one of these errors.

    Raises:
        AssertionError: It raises nothing.
    """
    __tracebackhide__ = True
    try:
        yield
    except errors:
        return
    raise AssertionError(f"{what} must be refused by {' or '.join(error.__name__ for error in errors)}, and is not.")
