"""``peftcore methods``: what each method is, and what one method can be asked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from peftcore.catalog import catalog
from peftcore.cli.output import AsJson, complain, show, write_json
from peftcore.exceptions import PluginError
from peftcore.views import View

if TYPE_CHECKING:
    from peftcore.cli.description import MethodDescription, OptionDescription


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, to see its options.", metavar="[NAME]")] = None,
    every: Annotated[bool, typer.Option("--all", help="With NAME: also the options that every method has.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the methods, or the options of one, with an example that is ready to use."""
    if name is not None:
        _show_one(name, every, as_json)
        return
    from peftcore.cli.description import describe
    from peftcore.registry import registry

    found = []
    for known in catalog.names():
        try:
            found.append(describe(registry[known]))
        except PluginError as error:
            complain("Warning", str(error))
    if as_json:
        write_json([dataclasses.asdict(method) for method in found])
    else:
        show(_table(found))


def _show_one(name: str, every: bool, as_json: bool) -> None:
    from peftcore.cli.description import describe, describe_options, example
    from peftcore.registry import registry

    method = registry[name]
    description, options = describe(method), describe_options(method.config_cls)
    if as_json:
        listed = [dataclasses.asdict(option) for option in options]
        write_json({**dataclasses.asdict(description), "options": listed, "example": example(method)})
    else:
        show(_page(description, method.config_cls.__name__, options, every))
        print(f"\n{example(method)}")


def _table(found: list[MethodDescription]) -> View:
    rows = [(m.name, m.family, _layers(m.layers), m.mergeable, m.mixed_batch, _id(m.paper)) for m in found]
    return View(
        f"{len(found)} method{'' if len(found) == 1 else 's'}",
        ("method", "family", "layers", "merges", "mixed", "paper"),
        rows,
        ["peftcore methods NAME shows what a method can be asked."] if found else ["pip install 'peftcore[all]'"],
    )


def _page(method: MethodDescription, config: str, options: list[OptionDescription], every: bool) -> View:
    shown = [option for option in options if every or not option.shared]
    rest = [option.name for option in options if option not in shown]
    facts = {
        "plugin": method.distribution or "registered in this process",
        "family": method.family,
        "layers": ", ".join(method.layers) or "none",
        "merges": method.mergeable,
        "mixed batch": method.mixed_batch,
        "paper": _paper(method.paper),
    }
    notes = [f"It also has (--all describes them): {', '.join(rest)}."] if rest else []
    rows = [(option.name, option.type, option.default, option.meaning) for option in shown]
    return View(f"{method.name}: {config}", ("option", "type", "default", "meaning"), rows, notes, facts)


def _layers(kinds: tuple[str, ...]) -> str:
    """Name the kinds as shortly as a column needs: the most usual one, and how many there are beside."""
    from peftcore.adapters.delta import MATRIX_KINDS

    if set(kinds) >= MATRIX_KINDS:
        return "matrices"
    first = "linear" if "linear" in kinds else next(iter(kinds), "–")
    return f"{first} +{len(kinds) - 1}" if len(kinds) > 1 else first


def _paper(paper: str | None) -> str:
    return paper or "–"


def _id(paper: str | None) -> str:
    """Return an arXiv id; "web" for an address, which has no room in a column."""
    return "web" if "/" in (paper or "") else _paper(paper)
