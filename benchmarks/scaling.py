"""``python -m benchmarks.scaling [--measure] [--write]``: docs/scaling.md, computed from measured constants.

The page holds the constants, and tables that follow from them.
Without ``--measure`` the tables are made anew from the page's own constants.
"""

from __future__ import annotations

import argparse
import gc
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.models import Feedforward
from benchmarks.pairs import digits

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
NUMBERS = (1, 10, 100, 1_000, 10_000, 100_000)

#: What is measured: its unit, and what it is.
CONSTANTS = {
    "objects": ("bytes", "memory of an adapter on one layer, beside its numbers"),
    "read": ("µs", "reading a layer's two tensors from a file in the system's cache into host memory"),
    "load": ("µs", "putting an adapter from host memory on one layer, beside copying its numbers"),
    "delete": ("µs", "taking an adapter off one layer"),
    "switch": ("µs", "`set_adapter`, for each layer of the two adapters"),
    "copy": ("GB/s", "copying numbers within the memory"),
}


@dataclass(frozen=True)
class Shape:
    """A model, by the sizes of the layers that an adapter stands on.

    Attributes:
        title: What the tables call it.
        layers: (inputs, outputs, how many of them).
    """

    title: str
    layers: tuple[tuple[int, int, int], ...]
    rank: int = 16

    @property
    def count(self) -> int:
        """Layers that are adapted."""
        return sum(number for *_, number in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of an adapter's numbers in bfloat16."""
        return 2 * self.rank * sum((inputs + outputs) * number for inputs, outputs, number in self.layers)


def _dense(title: str, blocks: int, width: int, key_values: int, inner: int) -> Shape:
    attention = ((width, width, 2 * blocks), (width, key_values, 2 * blocks))
    return Shape(title, (*attention, (width, inner, 3 * blocks)))


_ATTENTION = ((2048, 4096, 2 * 48), (2048, 512, 2 * 48))
SHAPES = (
    _dense("8 B, all projections", 32, 4096, 1024, 14336),
    _dense("70 B, all projections", 80, 8192, 1024, 28672),
    Shape("256 experts, attention alone", _ATTENTION),
    Shape("256 experts, experts too", (*_ATTENTION, (2048, 768, 48 * 256 * 3))),
)


def tables(constants: Mapping[str, float]) -> str:
    """Return what follows from the constants, in markdown."""
    one = [
        (
            shape.title,
            f"{shape.count:,}",
            _size(shape.nbytes),
            _size(objects(shape, constants)),
            *times(shape, constants),
        )
        for shape in SHAPES
    ]
    heads = ("model", "layers", "numbers", "objects", "read", "load", "delete", "switch")
    many = [
        (f"{number:,}", *(_size(number * (shape.nbytes + objects(shape, constants))) for shape in SHAPES))
        for number in NUMBERS
    ]
    together = [
        (f"{number:,}", *(_time(number * seconds("load", shape, constants)) for shape in SHAPES)) for number in NUMBERS
    ]
    titles = tuple(shape.title for shape in SHAPES)
    return "\n\n".join(
        [
            "One adapter of rank 16, in bfloat16:",
            _table(heads, one),
            "Memory, all of them in the model:",
            _table(("adapters", *titles), many),
            "Time to load all of them from host memory, one after the other:",
            _table(("adapters", *titles), together),
        ]
    )


def objects(shape: Shape, constants: Mapping[str, float]) -> float:
    """Return the bytes of an adapter beside its numbers."""
    return constants["objects"] * shape.count


def seconds(what: str, shape: Shape, constants: Mapping[str, float]) -> float:
    """Return what one adapter takes: a share for each layer and, where numbers are copied, for their bytes."""
    share = 2 if what == "switch" else 1
    copied = shape.nbytes / (constants["copy"] * 1e9) if what in ("read", "load") else 0.0
    return share * shape.count * constants[what] / 1e6 + copied


def times(shape: Shape, constants: Mapping[str, float]) -> list[str]:
    """Return what one adapter takes, written for people."""
    return [_time(seconds(what, shape, constants)) for what in ("read", "load", "delete", "switch")]


def constants_on(page: str) -> dict[str, float]:
    """Return the constants that the page holds."""
    found = re.findall(r"^\| `(\w+)` +\| [^|]+ \| +([\d.,]+) ", page, re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in found}


def filled(page: str, constants: Mapping[str, float]) -> str:
    """Return the page with other constants, and the tables that follow from them."""
    rows = [(f"`{name}`", unit, digits(constants[name]), what) for name, (unit, what) in CONSTANTS.items()]
    for place, text in (
        ("constants", _table(("constant", "unit", "value", "what"), rows)),
        ("tables", tables(constants)),
    ):
        start, end = f"<!-- {place} -->", f"<!-- end of {place} -->"
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(heads))]
    written = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    ]
    return "\n".join([written[0], f"| {' | '.join('-' * width for width in widths)} |", *written[1:]])


def _size(nbytes: float) -> str:
    return _scaled(nbytes, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def _time(value: float) -> str:
    return _scaled(value, ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")))


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for unit, name in units:
        if value >= unit:
            return f"{value / unit:,.0f} {name}" if value >= 100 * unit else f"{value / unit:.3g} {name}"
    return f"{value / units[-1][0]:.2g} {units[-1][1]}"


# ------------------------------------------------------------------------------------------------ the constants

#: Layers of the model that is measured: as many as a model of 8 B has projections.
LAYERS = 224
WIDTH = 16


def measured() -> dict[str, float]:
    """Measure the constants on layers so small that their numbers weigh nothing."""
    from peftcore import AdapterStore, LoraConfig, PeftModel, get_peft_model
    from peftcore.adapter_source import AdapterSource

    with TemporaryDirectory() as folder:
        for name in "ab":
            config = LoraConfig(r=1, target_modules=["linear"])
            get_peft_model(Feedforward(LAYERS, WIDTH), config, adapter_name=name).save_pretrained(folder)
        paths = {f"{name}{number}": Path(folder) / name for name in "ab" for number in range(64)}
        model = PeftModel(Feedforward(LAYERS, WIDTH), None)
        store = AdapterStore(
            model, {**paths, "a": Path(folder) / "a", "b": Path(folder) / "b"}, capacity=200, host_bytes=2**30
        )
        for name in paths:
            store.prefetch(name)
        store.ensure(["a", "b"])
        source = AdapterSource(Path(folder), host_bytes=1)
        read = _per_layer(lambda: source.get("a"))
        load = _per_layer(lambda: store.ensure("a0"), lambda: store.drop("a0") or store.prefetch("a0"))
        delete = _per_layer(lambda: model.delete_adapter("a0"), lambda: store.ensure("a0"))
        switch = _per_layer(lambda: (model.set_adapter("a"), model.set_adapter("b"))) / 4
        before = _resident()
        store.ensure(paths)
        beside = (_resident() - before) / len(paths) / LAYERS - 8 * WIDTH
    return {"objects": beside, "read": read, "load": load, "delete": delete, "switch": switch, "copy": _copying()}


def _per_layer(work: Callable[[], Any], prepare: Callable[[], Any] = lambda: None, times: int = 15) -> float:
    """Return the median of a piece of work in microseconds for each layer."""
    found = []
    for _ in range(times):
        prepare()
        gc.collect()
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return 1e6 * median(found) / LAYERS


def _resident() -> int:
    """Return the bytes of memory that the process has."""
    gc.collect()
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return 1024 * int(kilobytes)


def _copying() -> float:
    """Return how fast numbers are copied by one thread, in gigabytes per second."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    found = []
    for _ in range(9):
        start = perf_counter()
        target.copy_(source)
        found.append(perf_counter() - start)
    return source.nbytes / median(found) / 1e9


def main() -> None:
    """Print the page's tables, or write them."""
    parser = argparse.ArgumentParser("python -m benchmarks.scaling", description="The tables of docs/scaling.md.")
    parser.add_argument("--measure", action="store_true", help="measure the constants first (half a minute)")
    parser.add_argument("--write", action="store_true", help="keep the outcome in docs/scaling.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    page = filled(page, measured() if asked.measure else constants_on(page))
    # What is shown is what follows from the constants as they are written.
    page = filled(page, constants_on(page))
    if asked.write:
        PAGE.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
