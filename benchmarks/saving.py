"""Saving and loading adapters, beside what the disk takes for the same tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.models import MIDDLING, PROJECTIONS, SMALL, projections
from benchmarks.pairs import SIDES, Grid, Quantities, Round, elapsed, libraries, ratios, rounds, series, spread

TITLE = "Saving and loading"
ABOUT = """\
`save_pretrained` and `load_adapter` of LoRA adapters on the CPU, against HF PEFT and against the bare disk.
The bare disk writes the same tensors by `safetensors.torch.save_file` and brings them to the disk by `fsync`, as
peftcore does before it renames the file into place; HF PEFT leaves them to the system's cache.
To read, it maps the file by `load_file` and copies each tensor.
The file is in the system's cache when it is read.
Loading comes under a new name, beside the adapter that was saved; the adapter is then deleted, untimed."""

_DISK = "disk"
_HEADER = ("what", "HF PEFT, ms", "the disk, ms", "peftcore, ms", "peftcore / HF PEFT", "peftcore / the disk")


@dataclass(frozen=True)
class Case:
    """An adapter: the model it is on, its layers' names and its rank."""

    title: str
    build: Callable[[], Any]
    targets: tuple[str, ...]
    rank: int


def _many(shape: Any) -> Case:
    def build() -> Any:
        return shape.build().to_empty(device="cpu").requires_grad_(False)

    return Case(f"{2 * shape.linears:,} small tensors (width 64)", build, shape.targets, 8)


def _few(blocks: int, width: int, rank: int) -> Case:
    layers = blocks * len(PROJECTIONS)
    title = f"{2 * layers} large tensors ({8 * layers * width * rank / 1e6:,.0f} MB)"
    return Case(title, lambda: projections(blocks, PROJECTIONS, width), PROJECTIONS, rank)


def measure(quick: bool) -> list[Grid]:
    """Time saving and loading of many small and of few large tensors."""
    cases = (_many(SMALL), _few(2, 256, 64)) if quick else (_many(MIDDLING), _few(8, 1024, 256))
    return [Grid(_HEADER, _lines(case, 2 if quick else 7), f"{case.title}:") for case in cases]


def _lines(case: Case, count: int) -> list[list[str]]:
    adapted = {side: _adapted(library, case) for side, library in libraries().items()}
    state = libraries()["peftcore"].get_peft_model_state_dict(adapted["peftcore"])
    sides: Mapping[str, Callable[[], Quantities]] = {
        **{side: partial(_library, adapted[side], libraries()[side]) for side in SIDES},
        _DISK: partial(_disk, state),
    }
    found = rounds(sides, count, label=f"saving, {case.title}")
    return [
        _line("state dict", "collect", found),
        _line("save", "save", found),
        _line("load", "load", found),
    ]


def _line(what: str, quantity: str, found: list[Round]) -> list[str]:
    ours, theirs = (series(found, side, quantity) for side in SIDES)
    disk = series(found, _DISK, quantity) if quantity in found[0][_DISK] else None
    return [
        what,
        spread(theirs, 1e3),
        spread(disk, 1e3) if disk else "-",
        spread(ours, 1e3),
        spread(ratios(ours, theirs)),
        spread(ratios(ours, disk)) if disk else "-",
    ]


def _adapted(library: ModuleType, case: Case) -> Any:
    config = library.LoraConfig(r=case.rank, target_modules=list(case.targets))
    return library.get_peft_model(case.build(), config)


def _library(adapted: Any, library: ModuleType) -> Quantities:
    collected, _ = elapsed(lambda: library.get_peft_model_state_dict(adapted))
    with TemporaryDirectory() as folder:
        saved, _ = elapsed(lambda: adapted.save_pretrained(folder))
        os.sync()  # what one side leaves to the system is not to slow the next
        loaded, _ = elapsed(lambda: adapted.load_adapter(folder, "again"))
        adapted.delete_adapter("again")
    return {"collect": collected, "save": saved, "load": loaded}


def _disk(state: Mapping[str, Tensor]) -> Quantities:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.safetensors"
        saved, _ = elapsed(lambda: _write(dict(state), path))
        loaded, _ = elapsed(lambda: {name: tensor.clone() for name, tensor in load_file(path).items()})
    return {"save": saved, "load": loaded}


def _write(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
