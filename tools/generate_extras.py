"""Writes what follows from the folders in plugins/: extras of the core, dependencies of peftcore-all, licenses.

    python3 tools/generate_extras.py           write
    python3 tools/generate_extras.py --check   write nothing; fail if a file is not current

The core reads its own extras to know which methods are first-party, so each extra lists exactly its own plugin.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "peftcore-"
GENERATED = re.compile(r"(?<=Written by tools/generate_extras\.py\.\n)(.*\n)*?(?= *# end of the generated lines)")


def plugin_names(root: Path) -> list[str]:
    """Returns the distributions in plugins/, sorted, but for the one that depends on all."""
    return sorted(
        path.parent.name
        for path in root.glob(f"plugins/{PREFIX}*/pyproject.toml")
        if path.parent.name != f"{PREFIX}all"
    )


def extras(root: Path) -> str:
    return "".join(f'{name.removeprefix(PREFIX)} = ["{name}"]\n' for name in [f"{PREFIX}all", *plugin_names(root)])


def dependencies(root: Path) -> str:
    return "".join(f'    "{name}",\n' for name in plugin_names(root))


def with_generated(file: Path, lines: str) -> str:
    """Returns the file's text with the lines between its markers replaced."""
    text, count = GENERATED.subn(lambda _: lines, file.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{file} has {count} pairs of markers for generated lines; expected one.")
    return text


def generated_files(root: Path) -> dict[Path, str]:
    """Returns the whole text of every file that this script writes."""
    core, everything = root / "pyproject.toml", root / "plugins" / f"{PREFIX}all" / "pyproject.toml"
    files = {core: with_generated(core, extras(root)), everything: with_generated(everything, dependencies(root))}
    # A copy, since a source distribution holds nothing from outside its folder.
    license_text = (root / "LICENSE").read_text(encoding="utf-8")
    return files | {path.with_name("LICENSE"): license_text for path in root.glob("plugins/*/pyproject.toml")}


def main(arguments: list[str], root: Path = ROOT) -> None:
    stale = {
        path: text
        for path, text in generated_files(root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    if "--check" in arguments and stale:
        names = ", ".join(sorted(str(path.relative_to(root)) for path in stale))
        sys.exit(f"Not current: {names}. Run `python3 tools/generate_extras.py`.")
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
