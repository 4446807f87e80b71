"""A first and a second adapter, put into models of many modules."""

from __future__ import annotations

from functools import partial
from statistics import median
from types import ModuleType

from benchmarks.models import LARGE, MIDDLING, SMALL, ExpertShape
from benchmarks.pairs import Grid, Quantities, Table, digits, elapsed, libraries, paired, rounds
from peftcore.adapted_model import AdaptedModel
from peftcore.building import paused_collector

TITLE = "Injection"
ABOUT = """\
LoRA of rank 8 on every Linear of a mixture-of-experts model on the meta device: `get_peft_model` for the first adapter,
`add_adapter` for the second, both with `low_cpu_mem_usage=True`.
A model is a list of blocks; a block holds the Linears q and o and a list of experts of three Linears each.
Building the model is not timed.
The largest model is measured without a warm-up of its own, after the smaller ones.
The last table says where peftcore's time for a first adapter goes.
Making the adapter modules is the most of it, and of that, making three `nn.Module`s and two parameters per layer."""

#: The model, and its rounds.
_RUNS = ((SMALL, 7), (MIDDLING, 5), (LARGE, 3))


def measure(quick: bool) -> list[Table | Grid]:
    """Time both injections, over all and per adapted layer, and the steps of the first."""
    runs = ((SMALL, 2), (MIDDLING, 1)) if quick else _RUNS
    return [*(_table(shape, count) for shape, count in runs), _steps_of(MIDDLING, 2 if quick else 7)]


def _table(shape: ExpertShape, count: int) -> Table:
    warmup = 0 if shape is LARGE else 1
    sides = {side: partial(_inject, library, shape) for side, library in libraries().items()}
    found = rounds(sides, count, label=f"injection, {shape}", warmup=warmup)
    first, second = ("≤ 0.1", "≤ 0.025") if shape is LARGE else ("", "")
    rows = [
        paired("first adapter", "s", found, "first", to_reach=first),
        paired("second adapter", "s", found, "second", to_reach=second),
        paired("first adapter, per adapted layer", "µs", found, "first", per=shape.linears),
        paired("second adapter, per adapted layer", "µs", found, "second", per=shape.linears),
    ]
    return Table(
        rows, f"{shape} ({shape.blocks} blocks of {shape.experts} experts), {shape.linears:,} Linears adapted:"
    )


def _inject(library: ModuleType, shape: ExpertShape) -> Quantities:
    model = shape.build()
    config = partial(library.LoraConfig, r=8, target_modules=list(shape.targets))
    one, two = config(), config()
    first, adapted = elapsed(lambda: library.get_peft_model(model, one, low_cpu_mem_usage=True))
    second, _ = elapsed(lambda: adapted.add_adapter("second", two, low_cpu_mem_usage=True))
    return {"first": first, "second": second}


def _steps_of(shape: ExpertShape, count: int) -> Grid:
    """Return the time of each step of peftcore's first injection, per adapted layer."""
    found = [_steps(shape) for _ in range(count + 1)][1:]  # the first one warms up
    middle = {step: median(round_[step] for round_ in found) / shape.linears for step in found[0]}
    whole = sum(middle.values())
    lines = [(step, digits(seconds * 1e6), f"{seconds / whole:.0%}") for step, seconds in middle.items()]
    return Grid(("step", "µs per adapted layer", "share"), lines, f"peftcore's first adapter by steps, {shape}:")


def _steps(shape: ExpertShape) -> Quantities:
    library = libraries()["peftcore"]
    adapted = AdaptedModel(shape.build())
    config = library.LoraConfig(r=8, target_modules=list(shape.targets))
    with paused_collector():  # as add_adapter does
        finding, report = elapsed(adapted.prepare("planned", config, low_cpu_mem_usage=True)[0].report)
        building, (tuner, _) = elapsed(lambda: adapted.prepare("first", config, low_cpu_mem_usage=True))
        planning, _ = elapsed(lambda: tuner.plan(report))
        inserting, _ = elapsed(lambda: adapted.insert(tuner))
        activating, _ = elapsed(lambda: adapted.set_adapter("first"))
    return {
        "finding the targets": finding,
        "planning the slots": planning,
        "making the adapter modules": building - finding - planning,
        "freezing the model, placing the modules": inserting - activating,
        "activating them": activating,
    }
