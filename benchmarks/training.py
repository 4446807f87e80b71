"""A training step with LoRA against the same step of the frozen model."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import Feedforward
from benchmarks.pairs import (
    SIDES,
    Quantities,
    Row,
    Table,
    libraries,
    median_seconds,
    over,
    paired,
    ratios,
    rounds,
    series,
    spread,
)

TITLE = "Training step"
ABOUT = """\
Forward and backward of six square Linears one behind the other, fp32, LoRA of rank 8 on each, no dropout.
The frozen model is the same model without adapters and with no parameter that trains.
The input requires a gradient in all three, as it would behind an adapted layer, so that the frozen model has a backward
pass too: all compute the gradient of the input; those with adapters also the gradients of their factors.
Overhead is a step's time beyond the frozen model's, as a share of the frozen model's in the same round.
A measurement is the median of steps repeated for a tenth of a second, at least three.
Clearing the gradients is not timed.

Memory is counted, not timed, and the same in each run.
With a ReLU behind each Linear, the frozen model too keeps the inputs of its layers, all but the first's.
Kept for backward: the storages that autograd saves during forward, each counted once, without parameters.
Peak: the most that the allocator holds at one time during a step beyond what it held before, by torch's profiler;
gradients of the factors are in it.
Both are given beyond the frozen model's."""

DEPTH = 6


class Case(NamedTuple):
    """What is trained."""

    width: int
    tokens: int
    relu: bool = False

    def __str__(self) -> str:
        return f"d = {self.width}, {self.tokens} tokens" + (", ReLU" if self.relu else "")


_CASES = tuple(Case(width, tokens) for width in (256, 1024) for tokens in (64, 512))


def measure(quick: bool) -> list[Table]:
    """Time a step, then count its memory."""
    cases = _CASES[:2] if quick else _CASES
    timed = [row for case in cases for row in _timed(case, quick)]
    counted = [row for case in cases for relu in (False, True) for row in _counted(case._replace(relu=relu))]
    return [Table(timed, "Time:"), Table(counted, "Memory beyond the frozen model's:")]


class Step:
    """One training step of one model, to be called; :meth:`clear` drops the gradients that it leaves."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        self.model = model
        self.x = torch.randn(case.tokens, case.width, requires_grad=True)
        self.gradient = torch.randn(case.tokens, case.width)
        self.leaves = [self.x, *(weight for weight in model.parameters() if weight.requires_grad)]

    def forward(self) -> Tensor:
        """Run the forward pass."""
        y: Tensor = self.model(self.x)
        return y

    def __call__(self) -> None:
        torch.autograd.backward(self.forward(), self.gradient)

    def clear(self) -> None:
        """Drop the gradients."""
        for leaf in self.leaves:
            leaf.grad = None


def _steps(case: Case) -> dict[str, Step]:
    """Return the step of the frozen model and those of both libraries' adapters on the same model."""

    def frozen() -> Feedforward:
        torch.manual_seed(0)
        return Feedforward(DEPTH, case.width, relu=case.relu)

    adapted: dict[str, nn.Module] = {
        side: library.get_peft_model(frozen(), library.LoraConfig(r=8, target_modules=["linear"]))
        for side, library in libraries().items()
    }
    steps = {side: Step(model, case) for side, model in {"frozen": frozen(), **adapted}.items()}
    if any(len(steps[side].leaves) != 1 + 2 * DEPTH for side in SIDES):
        raise RuntimeError("A library did not adapt every Linear of the model with two factors that train.")
    return steps


def _timed(case: Case, quick: bool) -> list[Row]:
    def seconds(step: Step) -> Quantities:
        return {"step": median_seconds(step, 0.1, at_least=3, prepare=step.clear)}

    sides = {side: partial(seconds, step) for side, step in _steps(case).items()}
    found = rounds(sides, 5 if quick else 31, label=f"training step, {case}")
    frozen = series(found, "frozen", "step")
    overheads = {side: ratios(over(found, side, "frozen", "step"), frozen) for side in SIDES}
    return [
        paired(f"{case}: step (frozen: {spread(frozen, 1e3)})", "ms", found, "step"),
        Row(f"{case}: overhead", "%", overheads, to_reach="≤ 1"),
    ]


def _counted(case: Case) -> list[Row]:
    found = [{side: _bytes(step) for side, step in _steps(case).items()}]
    return [
        Row(
            f"{case}: {what} (frozen: {spread(series(found, 'frozen', quantity), 1 / 1024)})",
            "KiB",
            {side: over(found, side, "frozen", quantity) for side in SIDES},
            to_reach=target,
        )
        for what, quantity, target in (("kept for backward", "kept", ""), ("peak", "peak", "≤ 1"))
    ]


def _bytes(step: Step) -> Quantities:
    step()  # what is allocated once and kept is no part of a step
    step.clear()
    kept = _kept_bytes(step)
    return {"kept": kept, "peak": _peak_bytes(step)}


def _kept_bytes(step: Step) -> int:
    """Return the bytes of the distinct storages that forward saves for backward, without parameters."""
    parameters = {weight.untyped_storage().data_ptr() for weight in step.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = step.forward()  # kept alive until the count is read: a freed address may be given out again
    del output
    return sum(kept.values())


def _peak_bytes(step: Step) -> int:
    """Return the most bytes that a step holds at one time beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
