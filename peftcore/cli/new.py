"""``peftcore new``: writes a package for a new method, complete but for its mathematics.

The texts are the files in ``templates/``, with ``%{name}`` and its like where the method comes in.
A folder there belongs to one family; what a family's folder lacks is in ``layers/`` or in ``every/``.
"""

from __future__ import annotations

import datetime
import re
import shlex
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from importlib_metadata import version
from packaging.version import Version

from peftcore.catalog import Catalog, canonical, catalog, name_problem
from peftcore.cli.writing import new_directory
from peftcore.exceptions import NewPackageError

TEMPLATES = Path(__file__).parent / "templates"
#: The families for which there are templates.
FAMILIES = ("delta", "transform", "scale", "selective", "bypass", "prompt")
LICENSES = ("Apache-2.0", "MIT", "BSD-3-Clause")

#: Every file of a package, and the template that it is written from; a family's folder has some or all of them.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "workflow.yml",
    "%{module}/__init__.py": "__init__.py",
    "%{module}/config.py": "config.py",
    "%{module}/adapter.py": "adapter.py",
    "%{module}/encoder.py": "encoder.py",
    "tests/test_conformance.py": "test_conformance.py",
    "tests/test_mathematics.py": "test_mathematics.py",
}


def new(
    name: Annotated[str, typer.Argument(help="The method's name: lower-case letters and digits, with '_' between.")],
    family: Annotated[
        str, typer.Option(metavar="FAMILY", help=f"One of {', '.join(FAMILIES)}.", autocompletion=lambda: FAMILIES)
    ] = "delta",
    license: Annotated[
        str, typer.Option(metavar="LICENSE", help=f"One of {', '.join(LICENSES)}.", autocompletion=lambda: LICENSES)
    ] = "Apache-2.0",
    directory: Annotated[
        Path | None, typer.Option(help="The package's own folder, which is made; peftcore-NAME if not given.")
    ] = None,
) -> None:
    """Write a package for a new method, complete but for its mathematics."""
    files = write_package(name, family, license, directory)
    package = next(file.parent for file in files if file.name == "pyproject.toml")
    print(f"Wrote {len(files)} files. Its tests pass as they are:\n")
    print(f"    cd {shlex.quote(str(package))}")
    print('    pip install --editable ".[dev]"')
    print("    python -m pytest\n")
    print("What is left to do is marked TODO: the mathematics, and words for it.")


class _Template(string.Template):
    """Takes ``%{name}``; dollars stand in workflow files and in what is typed at a prompt."""

    delimiter = "%"


def write_package(
    name: str,
    family: str = "delta",
    license: str = "Apache-2.0",
    directory: Path | None = None,
    known: Catalog = catalog,
) -> list[Path]:
    """Write a package whose tests pass, and whose TODOs are the mathematics; all of it, or nothing.

    Args:
        name: The method's name.
        family: One of :data:`FAMILIES`.
        license: One of :data:`LICENSES`.
        directory: The package's own folder, which must not exist; ``peftcore-<name>`` if None.
        known: The methods that there are.

    Returns:
        The files, sorted.

    Raises:
        NewPackageError: The name is illegal or taken, or there is no such family or license.
        OutputError: The folder exists, or can't be written. Either way nothing was written.
    """
    _check_choice("family", family, FAMILIES)
    _check_choice("license", license, LICENSES)
    _check_name(name, known)
    values = _values(name, family, license)
    target = Path(values["distribution"]) if directory is None else directory
    texts = dict(_package(values, family, license))
    with new_directory(target) as made:
        for path, text in texts.items():
            file = made / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    return sorted(target / path for path in texts)


# ------------------------------------------------------------------------------------------------ checks


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise NewPackageError(f"There is no {what} {value!r}; there are {', '.join(choices)}.")


def _check_name(name: str, known: Catalog) -> None:
    if problem := name_problem(name):
        suggested = canonical(re.sub(r"[\s]+", "_", name.strip()))
        hint = f" Did you mean {suggested!r}?" if not name_problem(suggested) else ""
        raise NewPackageError(f"{problem}.{hint}")
    for claim in known.listing.method_claims():
        if claim.name == name:
            raise NewPackageError(f"There is a method {name!r} already, in {claim}. Choose another name.")
    if name in known.first_party():
        raise NewPackageError(
            f"{known.first_party()[name]} is a distribution of peftcore's own, which you can install. "
            "Choose another name."
        )


# ------------------------------------------------------------------------------------------------- texts


def _values(name: str, family: str, license: str) -> dict[str, str]:
    """Return what the templates leave open."""
    distribution = f"peftcore-{name.replace('_', '-')}"
    return {
        "name": name,
        "class": "".join(part[0].upper() + part[1:] for part in name.split("_")),
        "distribution": distribution,
        "module": f"peftcore_{name}",
        "license": license,
        "versions": versions_for(version("peftcore")),
        # The checks of prompt methods run on transformers' models.
        "extras": "testing,hf" if family == "prompt" else "testing",
        "year": str(datetime.date.today().year),
        "holder": f"The {distribution} contributors",
    }


def versions_for(core: str) -> str:
    """Return the versions of the core that a plugin written with this one goes with (docs/stability.md)."""
    major, minor = Version(core).major, Version(core).minor
    return f">={major}.{minor},<{f'{major}.{minor + 1}' if major == 0 else major + 1}"


def _package(values: Mapping[str, str], family: str, license: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of each file."""
    folders = [TEMPLATES / family, *([] if family == "prompt" else [TEMPLATES / "layers"]), TEMPLATES / "every"]
    for path, source in _FILES.items():
        template = _find(folders, f"{source}.tmpl")
        if template is not None:
            yield _fill(path, values), _fill(template.read_text(encoding="utf-8"), values)
    yield "LICENSE", _fill((TEMPLATES / "licenses" / f"{license}.tmpl").read_text(encoding="utf-8"), values)
    yield f"{values['module']}/py.typed", ""


def _find(folders: list[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _Template(text).substitute(values)
