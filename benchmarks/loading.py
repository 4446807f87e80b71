"""Loading one adapter after the other into a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from benchmarks.models import PROJECTIONS, projections
from benchmarks.pairs import SIDES, Quantities, Row, Table, elapsed, libraries, paired, ratios, rounds, series

TITLE = "Loading"
ABOUT = """\
A LoRA of rank 8 on the seven projections of each block of a decoder's shape (Linears of width 64, on the CPU), saved by
the library that is measured, then loaded by `load_adapter` under twenty names one after the other, beside the one that
`get_peft_model` put there.
The last row compares the twentieth load with the first within one library, round by round."""


def measure(quick: bool) -> list[Table]:
    """Time the first and the twentieth load."""
    blocks, count = (4, 2) if quick else (56, 5)
    sides = {side: partial(_load, library, blocks) for side, library in libraries().items()}
    found = rounds(sides, count, label="loading")
    growth = {side: ratios(series(found, side, "last"), series(found, side, "first")) for side in SIDES}
    rows = [
        paired("first load", "ms", found, "first"),
        paired("twentieth load", "ms", found, "last"),
        Row("twentieth over first", "times", growth, to_reach="peftcore: 1"),
    ]
    return [Table(rows, f"{blocks} blocks, {blocks * len(PROJECTIONS)} Linears adapted:")]


def _load(library: ModuleType, blocks: int) -> Quantities:
    config = library.LoraConfig(r=8, target_modules=list(PROJECTIONS))
    adapted = library.get_peft_model(projections(blocks, PROJECTIONS), config)
    with TemporaryDirectory() as folder:
        adapted.save_pretrained(Path(folder))
        first, _ = elapsed(lambda: adapted.load_adapter(folder, "a1"))
        for number in range(2, 20):
            adapted.load_adapter(folder, f"a{number}")
        last, _ = elapsed(lambda: adapted.load_adapter(folder, "a20"))
    return {"first": first, "last": last}
