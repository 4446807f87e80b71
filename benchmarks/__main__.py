"""``python -m benchmarks [NAMES] [--quick] [--threads N] [--write]``."""

from __future__ import annotations

import argparse
import sys
import traceback
from types import ModuleType

import torch

from benchmarks import (
    imports,
    inference,
    injection,
    loading,
    merging,
    methods,
    mixed_batches,
    report,
    saving,
    state_dicts,
    store,
    switching,
    training,
)
from benchmarks.pairs import elapsed

#: The subjects by the names they are asked for, in the order in which they run.
SUBJECTS: dict[str, ModuleType] = {
    "import": imports,
    "injection": injection,
    "state-dict": state_dicts,
    "loading": loading,
    "saving": saving,
    "store": store,
    "training": training,
    "inference": inference,
    "mixed-batches": mixed_batches,
    "switching": switching,
    "methods": methods,
    "merging": merging,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the subjects asked for; a subject that fails is reported and does not stop the others.

    Returns:
        The exit status: 0, or 1 if a subject failed.
    """
    parser = _parser()
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in SUBJECTS]:
        parser.error(f"no subject is called {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    torch.set_num_threads(asked.threads)
    failed = []
    for name in asked.names or SUBJECTS:
        try:
            heading, text = _run(name, asked)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"## {heading}\n\n{text}", flush=True)
        if asked.write:
            report.write({heading: text}, [subject.TITLE for subject in SUBJECTS.values()])
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, asked: argparse.Namespace) -> tuple[str, str]:
    """Measure one subject; return its heading and its section's text."""
    subject = SUBJECTS[name]
    seconds, tables = elapsed(lambda: subject.measure(asked.quick))
    body = "\n\n".join([subject.ABOUT, *(table.markdown() for table in tables)])
    command = f"python -m benchmarks {name} --threads {asked.threads}" + (" --quick" if asked.quick else "")
    threads = "1 thread" if asked.threads == 1 else f"{asked.threads} threads"
    return f"{subject.TITLE}, {threads}", report.section(body, command, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="peftcore and HF PEFT side by side.")
    parser.add_argument(
        "names", nargs="*", metavar="NAMES", help=f"which subjects: {', '.join(SUBJECTS)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds of the small cases: to see that all works")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch's threads (default: 1)")
    parser.add_argument("--write", action="store_true", help=f"keep the tables in {report.PAGE.name}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
