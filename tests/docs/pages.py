"""Pages that are run: their files are written, their commands typed, and what they show is held against the outcome."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.M | re.S)


class Block(NamedTuple):
    """A code block; one with a title is the file of that name."""

    language: str
    title: str | None
    text: str


def blocks(page: str) -> list[Block]:
    """Return the code blocks of a page's text, in order."""
    return [Block(**found.groupdict()) for found in _BLOCK.finditer(page)]


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block, and the lines that the page shows below it."""
    for part in re.split(r"(?m)^\$ ", console)[1:]:
        command, *shown = part.splitlines()
        yield command, [line for line in shown if line.strip()]


def is_shown(line: str, output: str) -> bool:
    """Whether an output has a line that the page shows; ``…`` stands for anything."""
    pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
    return any(re.fullmatch(pattern, written.strip()) for written in output.splitlines())


class Shell:
    """Types commands into one shell after another, as if they were one: folder, variables and functions are kept.

    Args:
        home: The folder to start in.
        state: A folder for what is kept.
        **environ: Variables; of the running process's own, only a few are passed on.
    """

    def __init__(self, home: Path, state: Path, **environ: str) -> None:
        self.home = self.folder = home
        self.state = state / "state.sh"
        self.state.write_text("")
        kept = {name: os.environ[name] for name in ("LANG", "SYSTEMROOT", "TMPDIR") if name in os.environ}
        self.environ = {**kept, "HOME": str(state), "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environ}

    def type(self, command: str) -> str:
        """Run a command; return what it wrote."""
        script = f"""
            source "{self.state}"
            {command}
            status=$?
            {{ declare -px; declare -f; }} > "{self.state}"
            pwd > "{self.state}.folder"
            exit $status
        """
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        self.folder = Path(Path(f"{self.state}.folder").read_text().strip())
        return done.stdout

    def follow(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: A command fails, or the page shows what it does not write.
        """
        if block.title is not None:
            file = self.folder / block.title
            assert file.parent.is_dir(), f"{block.title} would stand in a folder that is not there"
            file.write_text(block.text, encoding="utf-8")
            return
        assert block.language == "console", f"a block of {block.language} that is neither a file nor a command"
        for command, shown in commands(block.text):
            output = self.type(command)
            missing = [line for line in shown if not is_shown(line, output)]
            assert not missing, f"$ {command}\ndoes not write {missing}, but\n{output}"


class LendingShell(Shell):
    """A shell with a Python in it, whose virtual environments have this one's packages, but for peftcore's own.

    What the page installs comes from a folder of wheels alone.
    """

    def __init__(self, home: Path, state: Path, wheels: Path) -> None:
        programs, self.lent = state / "bin", state / "lent"
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python3").chmod(0o755)
        self._lend()
        super().__init__(
            home,
            state,
            PATH=os.pathsep.join([str(programs), "/usr/bin", "/bin"]),
            PIP_NO_INDEX="1",
            PIP_FIND_LINKS=str(wheels),
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            PIP_NO_BUILD_ISOLATION="0",  # which means: no isolation
            PYTHONNOUSERSITE="1",
        )

    def _lend(self) -> None:
        self.lent.mkdir()
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(folder).iterdir():
                is_own = "peftcore" in entry.name or entry.name.partition("-")[0] == "pip"
                if not is_own and entry.suffix != ".pth" and not (self.lent / entry.name).is_symlink():
                    (self.lent / entry.name).symlink_to(entry)

    def type(self, command: str) -> str:
        """Run a command; virtual environments that it makes get what is lent."""
        output = super().type(command)
        if "venv" in command:
            for made in self.home.glob("**/pyvenv.cfg"):
                (site_packages,) = made.parent.glob("lib/python*/site-packages")
                for old in site_packages.glob("setuptools*"):  # which would hide the one that torch needs
                    shutil.rmtree(old)
                (site_packages / "lent.pth").write_text(str(self.lent), encoding="utf-8")
        return output
