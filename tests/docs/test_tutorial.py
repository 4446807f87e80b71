"""docs/writing-a-plugin.md, from an empty folder to a plugin in use, from wheels alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import DOCS, ROOT, Block, LendingShell, Shell, blocks, is_shown

PAGE = (DOCS / "writing-a-plugin.md").read_text(encoding="utf-8")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with the core's wheel."""
    folder = tmp_path / "wheels"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(wheels: Path, tmp_path: Path) -> None:
    home, state = tmp_path / "home", tmp_path / "state"
    home.mkdir()
    state.mkdir()
    shell = LendingShell(home, state, wheels)
    for block in blocks(PAGE):
        shell.follow(block)
    # The user's environment has both from wheels; the author's has the core from one.
    where = 'python -c "import peftcore, peftcore_singlora as s; print(peftcore.__file__, s.__file__)"'
    core, plugin = shell.type(where).split()
    assert Path(core).is_relative_to(home / "user") and Path(plugin).is_relative_to(home / "user")
    core, plugin = shell.type(f"{home}/peftcore-singlora/../.venv/bin/{where}").split()
    assert Path(core).resolve().is_relative_to(home / ".venv")
    assert Path(plugin).is_relative_to(home / "peftcore-singlora")
    # The page leaves only the README's words to do.
    assert left_to_do(home / "peftcore-singlora") == {"README.md"}


def left_to_do(package: Path) -> set[str]:
    texts = [path for path in package.rglob("*") if path.suffix in (".py", ".md", ".toml")]
    return {str(path.relative_to(package)) for path in texts if "TODO" in path.read_text(encoding="utf-8")}


def test_every_block_of_the_page_is_run() -> None:
    fences = len(re.findall(r"(?m)^ *```", PAGE))
    assert fences == 2 * len(blocks(PAGE))
    assert all(block.language == "console" or block.title for block in blocks(PAGE))


# ------------------------------------------------------------------------------------------ what runs the pages


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "home").mkdir()
    return Shell(tmp_path / "home", tmp_path, PATH="/usr/bin:/bin")


def test_folder_variables_and_functions_are_kept(shell: Shell) -> None:
    shell.follow(Block("console", None, "$ mkdir there\n$ cd there\n$ export WORD=kept\n$ say() { echo $WORD; }\n"))
    shell.follow(Block("console", None, "$ say\nkept\n$ pwd\n…/there\n"))


def test_a_file_is_written_where_the_shell_is(shell: Shell) -> None:
    shell.follow(Block("console", None, "$ mkdir there\n$ cd there\n"))
    shell.follow(Block("python", "some.py", "x = 1\n"))
    assert (shell.home / "there" / "some.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("text", ["$ false\n", "$ echo one\ntwo\n", "$ echo one two\none\n"])
def test_what_the_page_shows_and_is_not_so_is_found(shell: Shell, text: str) -> None:
    with pytest.raises(AssertionError, match=r"false|two"):
        shell.follow(Block("console", None, text))


def test_an_ellipsis_stands_for_anything() -> None:
    assert is_shown("… passed …", "collected\n= 12 passed in 3 s =")
    assert not is_shown("… passed …", "12 failed in 3 s")
