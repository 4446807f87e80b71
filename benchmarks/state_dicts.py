"""Reading an adapter's state dict out of a model of many modules."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from benchmarks.models import LARGE, MIDDLING, SMALL, ExpertShape
from benchmarks.pairs import Quantities, Row, Table, libraries, median_seconds, paired, rounds

TITLE = "State dict"
ABOUT = """\
`get_peft_model_state_dict` on the models of the injection subject, on the meta device: what it takes to name and
collect an adapter's tensors, two for each adapted layer, without copying them.
A measurement is the median of calls repeated for half a second, at least three."""


def measure(quick: bool) -> list[Table]:
    """Time the state dict of a middling and of the largest model."""
    shapes = (SMALL,) if quick else (MIDDLING, LARGE)
    return [Table([_row(shape, 3 if quick else 7) for shape in shapes])]


def _row(shape: ExpertShape, count: int) -> Row:
    sides = {side: partial(_read, library, _adapted(library, shape), shape) for side, library in libraries().items()}
    found = rounds(sides, count, label=f"state dict, {shape}")
    return paired(f"{shape}, {2 * shape.linears:,} tensors", "ms", found, "seconds")


def _adapted(library: ModuleType, shape: ExpertShape) -> Any:
    config = library.LoraConfig(r=8, target_modules=list(shape.targets))
    return library.get_peft_model(shape.build(), config, low_cpu_mem_usage=True)


def _read(library: ModuleType, adapted: Any, shape: ExpertShape) -> Quantities:
    if len(library.get_peft_model_state_dict(adapted)) != 2 * shape.linears:
        raise RuntimeError(f"{library.__name__} did not adapt every Linear of the model.")
    return {"seconds": median_seconds(lambda: library.get_peft_model_state_dict(adapted), 0.5, at_least=3)}
