"""A forward pass with LoRA, without gradients, against the same pass of the frozen model."""

from __future__ import annotations

import torch

from benchmarks.pairs import Table, median_seconds
from benchmarks.training import CASES, Step, time_cases

TITLE = "Inference"
ABOUT = """\
The models of the subject above, called under `torch.no_grad()`.
Overhead is a call's time beyond the frozen model's, as a share of the frozen model's in the same round."""


def measure(quick: bool) -> list[Table]:
    """Time a call."""
    cases = CASES[1:3] if quick else CASES
    return [Table([row for case in cases for row in time_cases(case, "inference", _seconds, 5 if quick else 15)])]


@torch.no_grad()
def _seconds(step: Step) -> float:
    return median_seconds(step.forward, 0.1, at_least=3)
