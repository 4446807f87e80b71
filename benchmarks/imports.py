"""What ``import peftcore`` costs over ``import torch``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

from benchmarks.pairs import SIDES, Quantities, Row, Table, paired, ratios, rounds, series

TITLE = "Import"
ABOUT = """\
Each measurement is a fresh interpreter that imports torch, then names of the library, and notes the seconds of each and
the modules that the second one added to `sys.modules`.
The interpreter's own start is not part of it; compiled bytecode is there for both.
The share is the library's seconds over torch's own in the same interpreter.
The second table adds what peftcore puts off until a method is first named: looking for the installed plugins, and
importing the one that has it."""

_CHILD = """\
import json, sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
known = set(sys.modules)
from {library} import {names}
end = time.perf_counter()
print(json.dumps({{"torch": middle - start, "beyond": end - middle, "both": end - start,
                   "modules": len(set(sys.modules) - known)}}))
"""


def measure(quick: bool) -> list[Table]:
    """Time imports in fresh interpreters."""
    count = 3 if quick else 11
    return [_table("PeftModel", count, to_reach="peftcore ≤ 3 %"), _table("LoraConfig, get_peft_model", count)]


def _table(names: str, count: int, to_reach: str = "") -> Table:
    found = rounds({side: partial(_import, side, names) for side in SIDES}, count, label=f"import of {names}")
    shares = {side: ratios(series(found, side, "beyond"), series(found, side, "torch")) for side in SIDES}
    rows = [
        paired("torch and the library", "s", found, "both"),
        paired("torch alone", "s", found, "torch"),
        paired("the library, torch being there", "s", found, "beyond"),
        Row("its share of torch alone", "%", shares, to_reach=to_reach),
        paired("modules beyond torch's", "modules", found, "modules"),
    ]
    return Table(rows, f"`from … import {names}`:")


def _import(library: str, names: str) -> Quantities:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _CHILD.format(library=library, names=names)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    quantities: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return quantities
