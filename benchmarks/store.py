"""An adapter store over ten thousand adapters on the disk: what hits and misses cost, and how many there are."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, cycle
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.models import Feedforward
from benchmarks.pairs import SIDES, Grid, Quantities, digits, libraries, median_seconds, ratios, rounds, series, spread

TITLE = "Adapter store"
ABOUT = """\
Adapters of rank 4 on 56 Linears of width 64, one behind the other, each adapter in a directory of its own.

A hit is `with store.pinned(names)` for eight adapters that are in the model.
A miss loads one adapter in the place of another: read from the disk (whose files the system has in its cache), or taken
from host memory.
For HF PEFT a miss is `load_adapter` and `delete_adapter`, with as many adapters loaded.

Requests come in batches of eight, each request for an adapter drawn by Zipf's law with exponent 1 over all that are on
the disk.
Each batch pins its adapters and runs the model once with `adapter_names`, 16 tokens per row.
A batch's time in the store is that of making ready what it needs; its time in the model is the call's."""

DEPTH = 56
BATCH = 8
#: Beyond so many adapters, HF PEFT needs minutes to load them.
MOST_BY_HF_PEFT = 64


def measure(quick: bool) -> list[Grid]:
    """Time hits and misses, then serve requests."""
    number, loaded, rows = (300, (8, 32), 20) if quick else (10_000, (16, 64, 256), 50)
    with _adapters(number) as folder:
        costs = [_costs(folder, count, 2 if quick else 5) for count in loaded]
        served = [_served(folder, number, capacity, host, rows) for capacity in loaded for host in (0, 2**30)]
    return [
        Grid(("adapters loaded", "hit of eight, µs", "miss, disk, ms", "miss, host memory, ms", "HF PEFT, ms", "ratio"),
             costs, "What one adapter costs (ratio: a miss from the disk over HF PEFT's):"),
        Grid(("capacity", "host memory", "hits", "read from the disk", "ms per batch in the store", "in the model"),
             served, f"{rows} batches of {BATCH} requests over {number:,} adapters:"),
    ]  # fmt: skip


@contextmanager
def _adapters(number: int) -> Iterator[Path]:
    """Write adapters that differ in their values, named by numbers."""
    from peftcore import get_peft_model_state_dict

    adapted = _model(libraries()["peftcore"])
    state = get_peft_model_state_dict(adapted)
    with TemporaryDirectory() as folder:
        first = Path(folder) / "0"
        adapted.save_pretrained(first)
        for name in range(number):
            path = Path(folder) / f"a{name}"
            path.mkdir()
            shutil.copyfile(first / "adapter_config.json", path / "adapter_config.json")
            values = {key: torch.full_like(tensor, name / number) for key, tensor in state.items()}
            save_file(values, path / "adapter_model.safetensors")
        yield Path(folder)


def _model(library: Any) -> Any:
    return library.get_peft_model(Feedforward(DEPTH, 64), library.LoraConfig(r=4, target_modules=["linear"])).eval()


def _store(folder: Path, capacity: int, host_bytes: int = 0) -> Any:
    from peftcore import AdapterStore, PeftModel

    model = PeftModel(Feedforward(DEPTH, 64), None).eval()
    return AdapterStore(model, folder, capacity=capacity, host_bytes=host_bytes), model


def _costs(folder: Path, loaded: int, count: int) -> list[str]:
    ours, theirs = SIDES
    sides = {ours: partial(_ours, *(_filled(folder, loaded, host) for host in (0, 2**30)), loaded)}
    if loaded <= MOST_BY_HF_PEFT:
        sides[theirs] = partial(_theirs, _loaded_by_hf_peft(folder, loaded), folder, loaded)
    found = rounds(sides, count, label=f"store, {loaded} loaded")
    hit, disk, host = (series(found, ours, quantity) for quantity in ("hit", "miss", "host"))
    shown = [str(loaded), spread(hit, 1e6), spread(disk, 1e3), spread(host, 1e3)]
    if theirs not in sides:
        return [*shown, "-", "-"]
    missed = series(found, theirs, "miss")
    return [*shown, spread(missed, 1e3), spread(ratios(disk, missed))]


def _filled(folder: Path, loaded: int, host_bytes: int) -> Any:
    """Return a store with as many adapters loaded, and twice as many in host memory if it has any."""
    store, _ = _store(folder, loaded, host_bytes)
    for number in range(2 * loaded):
        store.ensure(f"a{number}")
    return store


def _ours(store: Any, with_host: Any, loaded: int) -> Quantities:
    names = store.loaded()[:BATCH]

    def hit() -> None:
        with store.pinned(names):
            pass

    return {"hit": median_seconds(hit, 0.05), "miss": _missing(store, loaded), "host": _missing(with_host, loaded)}


def _missing(store: Any, loaded: int) -> float:
    # In turn, so that the one that comes is always the one that left longest ago.
    names = cycle([f"a{number}" for number in range(2 * loaded)])
    store.ensure([f"a{number}" for number in range(loaded, 2 * loaded)])
    return median_seconds(lambda: store.ensure(next(names)), 0.2)


def _loaded_by_hf_peft(folder: Path, loaded: int) -> Any:
    adapted = _model(libraries()[SIDES[1]])
    for number in range(loaded):
        adapted.load_adapter(folder / f"a{number}", f"a{number}")
    return adapted


def _theirs(adapted: Any, folder: Path, loaded: int) -> Quantities:
    def miss() -> None:
        adapted.load_adapter(folder / f"a{loaded}", f"a{loaded}")
        adapted.delete_adapter(f"a{loaded}")

    return {"miss": median_seconds(miss, 0.2, at_least=2)}


def _served(folder: Path, number: int, capacity: int, host_bytes: int, batches: int) -> list[str]:
    store, model = _store(folder, capacity, host_bytes)
    x = torch.randn(BATCH, 16, 64)
    storing: list[float] = []
    running: list[float] = []
    for names in _requests(number, batches):
        start = perf_counter()
        with store.pinned(names):
            middle = perf_counter()
            with torch.no_grad():
                model(x, adapter_names=names)
            running.append(perf_counter() - middle)
        storing.append(middle - start)
    counts = store.counts
    share = counts.hits / (counts.hits + counts.loads)
    return [
        str(capacity),
        "yes" if host_bytes else "no",
        f"{100 * share:.0f} %",
        f"{store.source.reads:,}",
        digits(1e3 * mean(storing)),
        digits(1e3 * mean(running)),
    ]


def _requests(number: int, batches: int) -> Iterator[list[str]]:
    chance = random.Random(0)
    weights = list(accumulate(1 / rank for rank in range(1, number + 1)))
    for _ in range(batches):
        yield [f"a{chosen}" for chosen in chance.choices(range(number), cum_weights=weights, k=BATCH)]
