"""Switching among many loaded adapters."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from benchmarks.models import projections
from benchmarks.pairs import Quantities, Row, Table, elapsed, libraries, median_seconds, paired, rounds

TITLE = "Switching"
ABOUT = """\
A model of 56 Linears (28 blocks of q and v, width 64, on the CPU), each with LoRA of rank 8, with two adapters and with
64 of them loaded.
`set_adapter` goes back and forth between two adapters; `disable_adapter` is entering and leaving the context;
`delete_adapter` takes away the last one, which is then put back, untimed.
The target over HF PEFT is 0.05 at 64 adapters, and the same time whatever the number loaded."""

TARGETS = ["q", "v"]


def measure(quick: bool) -> list[Table]:
    """Time switching with few and with many adapters loaded."""
    loaded = (2, 8) if quick else (2, 64)
    return [Table(_rows(number, 3 if quick else 9), f"{number} adapters loaded:") for number in loaded]


def _rows(loaded: int, count: int) -> list[Row]:
    sides = {side: partial(_switch, library, _load(library, loaded)) for side, library in libraries().items()}
    found = rounds(sides, count, label=f"switching, {loaded} adapters")
    return [paired(what, "ms", found, what) for what in ("set_adapter", "disable_adapter", "delete_adapter")]


def _config(library: ModuleType) -> Any:
    return library.LoraConfig(r=8, target_modules=TARGETS)


def _load(library: ModuleType, loaded: int) -> Any:
    adapted = library.get_peft_model(projections(28, TARGETS), _config(library), adapter_name="a1")
    for number in range(2, loaded + 1):
        adapted.add_adapter(f"a{number}", _config(library))
    return adapted


def _switch(library: ModuleType, adapted: Any) -> Quantities:
    last = f"a{len(adapted.peft_config)}"

    def back_and_forth() -> None:
        adapted.set_adapter("a2")
        adapted.set_adapter("a1")

    def disable() -> None:
        with adapted.disable_adapter():
            pass

    switched = median_seconds(back_and_forth, 0.2) / 2
    disabled = median_seconds(disable, 0.2)
    deleted, _ = elapsed(lambda: adapted.delete_adapter(last))
    adapted.add_adapter(last, _config(library))
    return {"set_adapter": switched, "disable_adapter": disabled, "delete_adapter": deleted}
