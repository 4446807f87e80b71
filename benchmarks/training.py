"""A training step with LoRA against the same step of the frozen model."""

from __future__ import annotations

from collections.abc import Callable
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
Forward and backward of square Linears one behind the other, LoRA on each.
The frozen model is the same model without adapters and with no parameter that trains.
The input requires a gradient in all three, as it would behind an adapted layer, so that the frozen model has a backward
pass too: all compute the gradient of the input; those with adapters also the gradients of their factors.
Adapters are fp32, as both libraries make them; bf16 is the dtype of the frozen model, "bf16 adapters" of both.
Overhead is a step's time beyond the frozen model's, as a share of the frozen model's in the same round.
A measurement is the median of steps repeated for a tenth of a second, at least three.
Clearing the gradients is not timed.

Memory is counted, not timed, and the same in each run.
With a ReLU behind each Linear, the frozen model too keeps the inputs of its layers, all but the first's.
Kept for backward: the storages that autograd saves during forward, each counted once, without parameters.
Peak: the most that the allocator holds at one time during a step beyond what it held before, by torch's profiler;
gradients of the factors are in it.
Both are given beyond the frozen model's."""


class Case(NamedTuple):
    """What is trained, or run."""

    width: int
    tokens: int
    rank: int = 8
    dtype: torch.dtype = torch.float32
    #: Whether the adapters are in the model's dtype too, where that is not fp32.
    narrow: bool = False
    dropout: float = 0.0
    relu: bool = False
    depth: int = 6

    def __str__(self) -> str:
        words = [f"d = {self.width}", f"{self.tokens} token{'s' * (self.tokens > 1)}"]
        words += [f"r = {self.rank}"] * (self.rank != 8) + ["bf16"] * (self.dtype == torch.bfloat16)
        words += ["bf16 adapters"] * self.narrow + [f"dropout {self.dropout}"] * (self.dropout > 0)
        return ", ".join(words + ["ReLU"] * self.relu)


COUNTED = tuple(Case(width, tokens) for width in (256, 1024) for tokens in (64, 512))
CASES = (
    Case(256, 1),
    *COUNTED[:2],
    Case(256, 2048),
    Case(1024, 1),
    *COUNTED[2:],
    Case(1024, 2048, depth=2),
    Case(4096, 1, depth=2),
    Case(4096, 64, depth=2),
    Case(1024, 512, rank=64),
    Case(1024, 512, dtype=torch.bfloat16),
    Case(1024, 512, dtype=torch.bfloat16, narrow=True),
    Case(1024, 64, dtype=torch.bfloat16),
)


def measure(quick: bool) -> list[Table]:
    """Time a step, then count its memory."""
    cases = CASES[1:3] if quick else (*CASES, Case(1024, 512, dropout=0.1))
    timed = [row for case in cases for row in time_cases(case, "training step", _seconds, 5 if quick else 15)]
    counted = [row for case in COUNTED for relu in (False, True) for row in _counted(case._replace(relu=relu))]
    return [Table(timed, "Time:"), Table(counted, "Memory beyond the frozen model's:")]


class Step:
    """One training step of one model, to be called; :meth:`clear` drops the gradients that it leaves."""

    def __init__(self, model: nn.Module, case: Case) -> None:
        self.model = model.train(case.dropout > 0)
        self.x = torch.randn(case.tokens, case.width, dtype=case.dtype, requires_grad=True)
        self.gradient = torch.randn(case.tokens, case.width, dtype=case.dtype)
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
        return Feedforward(case.depth, case.width, relu=case.relu).to(case.dtype)

    options = {"r": case.rank, "target_modules": ["linear"], "lora_dropout": case.dropout}
    adapted: dict[str, nn.Module] = {
        side: library.get_peft_model(frozen(), library.LoraConfig(**options), autocast_adapter_dtype=not case.narrow)
        for side, library in libraries().items()
    }
    steps = {side: Step(model, case) for side, model in {"frozen": frozen(), **adapted}.items()}
    if any(len(steps[side].leaves) != 1 + 2 * case.depth for side in SIDES):
        raise RuntimeError("A library did not adapt every Linear of the model with two factors that train.")
    return steps


def time_cases(case: Case, label: str, seconds: Callable[[Step], float], count: int) -> list[Row]:
    """Return the rows of a case: what it takes, and by how much that exceeds the frozen model."""
    sides = {side: partial(_quantities, seconds, step) for side, step in _steps(case).items()}
    found = rounds(sides, count, label=f"{label}, {case}")
    frozen = series(found, "frozen", "step")
    overheads = {side: ratios(over(found, side, "frozen", "step"), frozen) for side in SIDES}
    return [
        paired(f"{case}: whole (frozen: {spread(frozen, 1e3)})", "ms", found, "step"),
        Row(f"{case}: overhead", "%", overheads, to_reach="≤ 0.5"),
    ]


def _quantities(seconds: Callable[[Step], float], step: Step) -> Quantities:
    return {"step": seconds(step)}


def _seconds(step: Step) -> float:
    return median_seconds(step, 0.1, at_least=3, prepare=step.clear)


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
