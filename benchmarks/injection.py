"""A first and a second adapter, put into models of many modules."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from benchmarks.models import LARGE, MIDDLING, SMALL, ExpertShape
from benchmarks.pairs import Quantities, Table, elapsed, libraries, paired, rounds

TITLE = "Injection"
ABOUT = """\
LoRA of rank 8 on every Linear of a mixture-of-experts model on the meta device: `get_peft_model` for the first adapter,
`add_adapter` for the second, both with `low_cpu_mem_usage=True`.
A model is a list of blocks; a block holds the Linears q and o and a list of experts of three Linears each.
Building the model is not timed.
The largest model is measured without a warm-up of its own, after the smaller ones."""

#: The model, and its rounds.
_RUNS = ((SMALL, 7), (MIDDLING, 5), (LARGE, 3))


def measure(quick: bool) -> list[Table]:
    """Time both injections, over all and per adapted layer."""
    runs = ((SMALL, 2), (MIDDLING, 1)) if quick else _RUNS
    return [_table(shape, count) for shape, count in runs]


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
