"""``peftcore doctor``: what is installed, what is wrong with it, and the command that mends it."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import importlib_metadata
import typer
from packaging.requirements import InvalidRequirement, Requirement

from peftcore.catalog import DISABLED_VARIABLE, canonical, catalog
from peftcore.cli.output import AsJson, show, write_json
from peftcore.cli.plugins import tried
from peftcore.plugin_status import WRONG_STATES
from peftcore.views import View

#: Extras of the core that stand for something else than a plugin.
EXTRAS = ("cli", "hf", "testing")


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    """The distribution."""
    version: str
    """The installed one; empty if there is none."""
    state: str
    """"good", "missing", "wrong" or "switched off"; what is optional may be missing."""
    problem: str
    """What is wrong; empty if nothing is."""
    remedy: str
    """The command, or the step, that mends it."""


def doctor(
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 if anything is wrong.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at versions, plugins and optional dependencies; say what is wrong, and what mends it."""
    findings = [*_libraries(), *_plugins()]
    if as_json:
        write_json([finding._asdict() for finding in findings])
    else:
        show(_view(findings))
    if check and any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _libraries() -> Iterator[Finding]:
    yield Finding("python", platform.python_version(), "good", "", "")
    yield Finding("peftcore", _version("peftcore"), "good", "", "")
    for requirement, extra in _requirements("peftcore"):
        if not extra or extra in EXTRAS:
            yield _library(requirement, extra)


def _library(requirement: Requirement, extra: str) -> Finding:
    version = _version(requirement.name)
    wanted = f"peftcore[{extra}]" if extra else f"{requirement.name}{requirement.specifier}"
    if not version:
        state = "missing" if extra else "wrong"
        return Finding(requirement.name, "", state, "" if extra else "it is not installed", f"pip install '{wanted}'")
    if not requirement.specifier.contains(version, prereleases=True):
        remedy = f"pip install --upgrade '{requirement.name}{requirement.specifier}'"
        return Finding(requirement.name, version, "wrong", f"peftcore needs {requirement.specifier}", remedy)
    if requirement.name == "torch" and (problem := _import_problem("torch")):
        return Finding("torch", version, "wrong", problem, "pip install --force-reinstall torch")
    return Finding(requirement.name, version, "good", "", "")


def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"it can't be imported: {type(error).__name__}: {error}"
    return ""


def _plugins() -> Iterator[Finding]:
    try:
        statuses = tried()
    except ImportError as error:  # without torch no plugin can be tried
        yield Finding("plugins", "", "wrong", f"none could be tried: {error}", "mend what stands above first")
        return
    for status in statuses:
        if not status.distribution:
            continue
        name, version = status.distribution, status.version
        if status.state in WRONG_STATES:
            conflict = status.state == "conflicting"
            remedy = f"pip uninstall {name}" if conflict else f"pip install --upgrade --force-reinstall {name}"
            yield Finding(name, version, "wrong", f"{status.state}: {status.cause}", remedy)
        elif status.state == "disabled":
            yield Finding(name, version, "switched off", "", f"take it off {DISABLED_VARIABLE}")
        elif wanted := _core_wanted(name):
            yield Finding(name, version, "wrong", f"it needs peftcore{wanted}", f"pip install --upgrade {name}")
        else:
            yield Finding(name, version, "good", "", "")
    if not catalog.names():
        yield Finding("plugins", "", "wrong", "no method is installed", "pip install 'peftcore[all]'")


def _core_wanted(distribution: str) -> str:
    """Return which versions of the core a plugin wants, if the installed one is none of them."""
    for requirement, extra in _requirements(distribution):
        if canonical(requirement.name) == "peftcore" and not extra:
            core = _version("peftcore")
            if core and not requirement.specifier.contains(core, prereleases=True):
                return str(requirement.specifier)
    return ""


def _requirements(distribution: str) -> Iterator[tuple[Requirement, str]]:
    """Yield (requirement, extra that it belongs to, or "") of what a distribution needs in this environment."""
    try:
        lines = importlib_metadata.requires(distribution) or ()
    except importlib_metadata.PackageNotFoundError:
        return
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement, ""
            continue
        for extra in EXTRAS:
            if requirement.marker.evaluate({"extra": extra}):
                yield requirement, extra


def _version(distribution: str) -> str:
    try:
        return importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return ""


def _view(findings: list[Finding]) -> View:
    wrong = [finding for finding in findings if finding.state == "wrong"]
    notes = [
        f"{finding.what} is {'not installed' if not finding.version else f'{finding.state}'}"
        f"{f': {finding.problem}' if finding.problem else ''}\n  → {finding.remedy}"
        for finding in findings
        if finding.remedy
    ]
    notes.append("All is well." if not wrong else f"{len(wrong)} wrong.")
    rows = [(finding.what, finding.version or "–", finding.state) for finding in findings]
    return View("What peftcore runs on", ("distribution", "version", "state"), rows, notes)
