"""Sets up a development environment in .venv and runs one of these commands in it.

    python3 tools/dev.py quickstart           fine-tune a real model (examples/quickstart.py)
    python3 tools/dev.py test [ARGUMENTS]     every check and test; ARGUMENTS go to pytest
    python3 tools/dev.py site                 build the documentation into site/
    python3 tools/dev.py site serve           show it in a browser, and again whenever a page changes

Needs Python 3.10 or later, with its standard library alone. A second run re-uses the environment.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit("peftcore needs Python 3.10 or later; this is Python %d.%d." % sys.version_info[:2])

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "peftcore-setup"
REQUIREMENTS = ROOT / "requirements-dev.txt"
SITE_REQUIREMENTS = ROOT / "docs" / "requirements.txt"
EXAMPLE_REQUIREMENTS = ROOT / "examples" / "requirements.txt"


def run(*command: "str | Path", **environment: str) -> None:
    """Runs a command from the root, shown before it starts; ends the program where the command fails."""
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}, check=False)
    if done.returncode != 0:
        sys.exit(f"failed with exit code {done.returncode}: {' '.join(map(str, command))}")


def python(*arguments: "str | Path", **environment: str) -> None:
    run(PYTHON, *arguments, **environment)


def pip_install(*arguments: "str | Path") -> None:
    python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


def create_venv() -> None:
    """Creates the virtual environment, or leaves nothing behind."""
    if VENV.exists():
        return
    try:
        run(sys.executable, "-m", "venv", VENV)
    except BaseException:
        shutil.rmtree(VENV, ignore_errors=True)
        raise


def plugins() -> "list[Path]":
    return sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def fingerprint() -> str:
    """Changes whenever the environment has to be installed anew."""
    sources = [
        REQUIREMENTS,
        SITE_REQUIREMENTS,
        ROOT / "pyproject.toml",
        *(plugin / "pyproject.toml" for plugin in plugins()),
    ]
    return hashlib.sha256(b"\0".join(str(path).encode() + path.read_bytes() for path in sources)).hexdigest()


def set_up() -> None:
    """Brings .venv up to date: the pinned requirements, then the core and every plugin, editable."""
    if STAMP.is_file() and STAMP.read_text() == fingerprint():
        return
    create_venv()
    pip_install("pip>=23")  # older ones know no editable installs without setup.py
    pip_install("-r", REQUIREMENTS, "-r", SITE_REQUIREMENTS)
    # One call, so that pip finds each distribution's dependencies on the others here and not on an index.
    editable = [argument for path in (ROOT, *plugins()) for argument in ("--editable", path)]
    pip_install("--no-build-isolation", "--constraint", REQUIREMENTS, *editable)
    STAMP.write_text(fingerprint())


def quickstart(*arguments: str) -> None:
    pip_install("--no-deps", "-r", EXAMPLE_REQUIREMENTS)
    python("examples/quickstart.py", *arguments)


def site(*arguments: str) -> None:
    # The variable silences what the theme advertises at each start.
    python("-m", "mkdocs", *(arguments or ("build", "--strict")), NO_MKDOCS_2_WARNING="1")


def test(*arguments: str) -> None:
    for script in sorted(ROOT.glob("tools/generate_*.py")):
        python(script.relative_to(ROOT), "--check")
    python("-m", "ruff", "check")
    python("-m", "ruff", "format", "--check")
    python("-m", "mypy")
    site()
    # Work is stolen, not handed out test by test: of some eighty thousand, to find each by its name takes minutes.
    python("-m", "pytest", "-n", "2", "--dist", "worksteal", *arguments, OMP_NUM_THREADS="1")


COMMANDS = {"quickstart": quickstart, "test": test, "site": site}


def main(arguments: "list[str]") -> None:
    if not arguments or arguments[0] not in COMMANDS:
        sys.exit(__doc__)
    set_up()
    COMMANDS[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
